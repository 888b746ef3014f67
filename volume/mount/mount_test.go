package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/volume/mount"
)

// programs puts a shell script in front of each program that changes file systems, and returns what notes their calls.
func programs(t *testing.T, does map[string]string) (calls func() string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "e2fsck", "resize2fs", "xfs_growfs", "btrfs"} {
		script := "#!/bin/sh\necho " + name + " \"$@\" >> " + dir + "/calls\n" + does[name] + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		p, err := os.ReadFile(dir + "/calls")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir + "/calls"); err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(strings.TrimSpace(string(p)), "\n", "; ")
	}
}

// TestReady: an ext4 is checked if it asks for that or is to grow, and not otherwise, and is grown only if its device is larger.
func TestReady(t *testing.T) {
	calls := programs(t, nil)
	dev := filepath.Join(t.TempDir(), "dev")
	const block = 4096
	for name, c := range map[string]struct {
		state  uint16
		blocks int64 // of the device
		want   string
	}{
		"as it was":                          {1, 32768, ""},
		"in use before":                      {0, 32768, ""},
		"with errors":                        {1 | 2, 32768, "e2fsck -fp " + dev},
		"larger by a group":                  {1, 65536, "e2fsck -fp " + dev + "; resize2fs " + dev},
		"by less than a group needs":         {1, 32768 + 100, ""},
		"by a part of a block":               {1, 32768, ""},
		"smaller, which the kernel will say": {1, 32000, ""},
	} {
		if err := os.WriteFile(dev, ext(32768, c.state), 0o600); err != nil {
			t.Fatal(err)
		}
		size := c.blocks * block
		if name == "by a part of a block" {
			size += 512
		}
		if err := os.Truncate(dev, size); err != nil {
			t.Fatal(err)
		}
		v := mount.Volume{Name: "data", Device: dev, FS: "ext4"}
		kind, err := mount.Prepare(t.Context(), v, "", false, func(string) {})
		if got := calls(); err != nil || kind != "ext4" || got != c.want {
			t.Errorf("%s: %s, %v, called %q, want %q", name, kind, err, got, c.want)
		}
		for _, readOnly := range []bool{false, true} {
			v.ReadOnly = readOnly
			kind, err = mount.Prepare(t.Context(), v, "", !readOnly, nil)
			if got := calls(); err != nil || kind != "ext4" || got != "" {
				t.Errorf("%s: for what stays as it is: %s, %v, called %q", name, kind, err, got)
			}
		}
	}
}

// TestPrograms: the end of a program counts, and what it has said is told.
func TestPrograms(t *testing.T) {
	calls := programs(t, map[string]string{"e2fsck": "exit 4", "resize2fs": "echo no room; exit 1"})
	dev := filepath.Join(t.TempDir(), "dev")
	if err := os.WriteFile(dev, ext(32768, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := mount.Prepare(t.Context(), mount.Volume{Name: "data", Device: dev, FS: "ext4"}, "", false, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "run e2fsck -f "+dev) {
		t.Errorf("e2fsck that left errors: %v", err)
	}
	calls()
	if err := mount.Grow("ext4", dev, "/mnt"); err == nil || !strings.Contains(err.Error(), "resize2fs: exit status 1: no room") {
		t.Errorf("no room: %v", err)
	}
	calls()
	for kind, want := range map[string]string{"xfs": "xfs_growfs -d /mnt", "btrfs": "btrfs filesystem resize max /mnt"} {
		if err := mount.Grow(kind, dev, "/mnt"); err != nil || calls() != want {
			t.Errorf("%s: %v", kind, err)
		}
	}
	for _, err := range []error{mount.Grow("ntfs", dev, "/mnt"), mount.Make("ntfs", dev, false)} {
		if err == nil || calls() != "" {
			t.Errorf("ntfs: %v", err)
		}
	}
}

// TestMkfsTriesAgain: a mkfs.btrfs that stumbles over somebody else's loop device has written nothing, and is tried again.
func TestMkfsTriesAgain(t *testing.T) {
	dir := t.TempDir()
	dev, stumbled := filepath.Join(dir, "dev"), filepath.Join(dir, "stumbled")
	if err := os.WriteFile(dev, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	programs(t, map[string]string{"mkfs.btrfs": "test -e " + stumbled + " && exit 0; touch " + stumbled +
		"; echo 'ERROR: cannot check mount status of " + dev + ": No such device or address'; exit 1"})
	if err := mount.Make("btrfs", dev, false); err != nil {
		t.Error(err)
	}
	programs(t, map[string]string{"mkfs.btrfs": "echo 'ERROR: no room'; exit 1"})
	if err := mount.Make("btrfs", dev, false); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("without room: %v", err)
	}
}

// TestProgramsAreLeftAlone: a signal that a terminal sends reaches no program that changes a device.
func TestProgramsAreLeftAlone(t *testing.T) {
	session := filepath.Join(t.TempDir(), "session")
	programs(t, map[string]string{"resize2fs": "cut -d' ' -f6 /proc/$$/stat > " + session})
	if err := mount.Grow("ext4", "dev", "/mnt"); err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(session)
	if err != nil {
		t.Fatal(err)
	}
	own, err := unix.Getsid(0)
	if err != nil || strings.TrimSpace(string(theirs)) == "" {
		t.Fatalf("%q, %v", theirs, err)
	}
	if got := strings.TrimSpace(string(theirs)); got == strconv.Itoa(own) {
		t.Errorf("it is in session %s, ours", got)
	}
}
