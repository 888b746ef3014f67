package mount_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/volume/mount"
)

// TestPrepare: a volume that nobody has written to gets a file system, and so does one on which that was begun and not ended, unless
// somebody may have made what it holds by now; no other does. What the head says is written before the device is, and what the device
// has is in the store before the head says so.
func TestPrepare(t *testing.T) {
	dev := filepath.Join(t.TempDir(), "dev")
	calls := programs(t, nil)
	used := ext(1000, 1)
	used[1024+0x34] = 1 // mounts
	nothing, garbage := make([]byte, 128<<10), with(4096, "half of it")
	both := append(ext(10, 1)[:4096], nothing...)
	copy(both, "XFSB")
	small := with(0, "XFSB", 102, "\x02\x00")
	large := with(0, "XFSB", 102, "\x10\x00")
	begun := with(0, "XFSB", 126, "\x01")
	btrfs := with(64<<10+0x40, "_BHRfS_M")
	halfXFS, halfBtrfs := mount.Volume{FS: "making xfs"}, mount.Volume{FS: "making btrfs"}
	fresh, half := mount.Volume{Fresh: true}, mount.Volume{FS: "making ext4"}
	words := strings.NewReplacer("DEV", dev, "XFS", "mkfs.xfs -q -K", "BTRFS", "mkfs.btrfs -q -K", "EXT", "mkfs.ext4 -q -F -E nodiscard "+dev)
	for name, c := range map[string]struct {
		holds []byte
		v     mount.Volume
		want  string // of --fs
		does  string // notes, programs and the store, in order
		kind  string
		err   string
	}{
		"new":                        {holds: nothing, v: fresh, does: "making ext4,EXT,store,ext4", kind: "ext4"},
		"new, another one":           {holds: nothing, v: fresh, want: "xfs", does: "making xfs,XFS DEV,store,xfs", kind: "xfs"},
		"written to":                 {holds: garbage, err: "has been written to"},
		"written to, empty again":    {holds: nothing, err: "has been written to"},
		"half made, nothing there":   {holds: nothing, v: mount.Volume{FS: "making xfs"}, does: "XFS -f DEV,store,xfs", kind: "xfs"},
		"half made":                  {holds: garbage, v: half, does: "EXT,store,ext4", kind: "ext4"},
		"half made, two of them":     {holds: both, v: halfBtrfs, want: "btrfs", does: "BTRFS -f DEV,store,btrfs", kind: "btrfs"},
		"half made, two, not asked":  {holds: both, v: halfBtrfs, err: "several kinds are on it"},
		"half made, as xfs says":     {holds: begun, v: halfXFS, does: "XFS -f DEV,store,xfs", kind: "xfs"},
		"half made, xfs since":       {holds: large, v: halfXFS, err: "mount " + dev + " yourself"},
		"half made, btrfs since":     {holds: btrfs, v: halfBtrfs, err: "--fs btrfs makes a file system over it"},
		"half made, others since":    {holds: large, v: half, err: "data holds xfs, though its head says that ext4"},
		"half made, ext4 since":      {holds: ext(1000, 1), v: halfXFS, err: "data holds ext4, though"},
		"half made, swap since":      {holds: with(4096-10, "SWAPSPACE2"), v: half, err: "data holds swap, though"},
		"half made, xfs, asked for":  {holds: large, v: halfXFS, want: "xfs", does: "XFS -f DEV,store,xfs", kind: "xfs"},
		"half made, by all signs":    {holds: ext(1000, 1), v: half, does: "EXT,store,ext4", kind: "ext4"},
		"half made, now another one": {holds: garbage, v: half, want: "xfs", does: "making xfs,XFS -f DEV,store,xfs", kind: "xfs"},
		"half made, mounted since":   {holds: used, v: half, does: "ext4", kind: "ext4"},
		"half made, read-only":       {holds: garbage, v: mount.Volume{FS: "making ext4", ReadOnly: true}, err: "was not made to the end"},
		"swap":                       {holds: with(4096-10, "SWAPSPACE2"), v: fresh, err: "data holds swap, not a file system that"},
		"a partition table":          {holds: with(510, "\x55\xaa", 446, "\x80"), err: "data holds a partition table (dos)"},
		"a device that has gone":     {v: fresh, err: "cannot be told"},
		"another one than is wanted": {holds: large, v: mount.Volume{FS: "xfs"}, want: "ext4", err: "data holds xfs, not ext4"},
		"not noted":                  {holds: large, does: "xfs", kind: "xfs"},
		"not noted, read-only":       {holds: large, v: mount.Volume{ReadOnly: true}, kind: "xfs"},
		"noted":                      {holds: large, v: mount.Volume{FS: "xfs"}, kind: "xfs"},
		"small sectors":              {holds: small, v: mount.Volume{FS: "xfs"}, err: "losetup --sector-size 512"},
	} {
		if err := os.WriteFile(dev, c.holds, 0o600); err != nil {
			t.Fatal(err)
		}
		var did []string
		ran := func() {
			if s := calls(); s != "" {
				did = append(did, s)
			}
		}
		c.v.Name, c.v.Device, c.v.Sector = "data", dev, 4096
		c.v.Note = func(_ context.Context, fs string) error {
			ran()
			did = append(did, fs)
			return nil
		}
		c.v.Store = func(context.Context) error {
			ran()
			did = append(did, "store")
			return nil
		}
		kind, err := mount.Prepare(t.Context(), c.v, c.want, false, func(string) {})
		ran()
		var want []string
		if c.does != "" {
			want = strings.Split(words.Replace(c.does), ",")
		}
		if kind != c.kind || !slices.Equal(did, want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v, did %q; want %q, %q, did %q", name, kind, err, did, c.kind, c.err, want)
		}
	}

	// What fails on the way leaves the head as it was: the next one makes it again.
	programs(t, map[string]string{"mkfs.ext4": "exit 1"})
	if err := os.WriteFile(dev, nothing, 0o600); err != nil {
		t.Fatal(err)
	}
	head := ""
	v := mount.Volume{Name: "data", Device: dev, Fresh: true, Note: func(_ context.Context, fs string) error { head = fs; return nil }}
	if _, err := mount.Prepare(t.Context(), v, "", false, func(string) {}); err == nil || mount.HalfMade(head) != "ext4" {
		t.Errorf("mkfs failed: %v, the head says %q", err, head)
	}
	head = ""
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	if _, err := mount.Prepare(t.Context(), v, "xfs", false, func(string) {}); !errors.Is(err, exec.ErrNotFound) || head != "" {
		t.Errorf("no mkfs.xfs: %v, the head says %q", err, head)
	}
	t.Setenv("PATH", path)
	programs(t, nil)
	away := errors.New("the store is away")
	v.Store = func(context.Context) error { return away }
	if _, err := mount.Prepare(t.Context(), v, "", false, func(string) {}); !errors.Is(err, away) || mount.HalfMade(head) != "ext4" {
		t.Errorf("the store is away: %v, the head says %q", err, head)
	}
}
