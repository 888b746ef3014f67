package images_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// confined has remorad and its holder started under the directives of their systemd units from now on. It returns the program
// that does so.
func confined(t *testing.T, s *testbed.Stack) (confine string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("groups of system calls are expanded by systemd-analyze, which is not installed: apt-get install systemd")
	}
	confine = filepath.Join(t.TempDir(), "confine")
	build := exec.Command("go", "build", "-o", confine, "./conformance/tools/confine")
	build.Dir = testbed.Repo()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	remorad := testbed.Tool(t, "sh", "-c", "command -v remorad")
	// systemd sets INVOCATION_ID. Without it the holder looks for a control group of its own.
	const script = `#!/bin/sh
INVOCATION_ID=test setsid %[1]s %[2]s/remora-holder.service %[3]s holder --root %[4]s >>%[4]s.holder.log 2>&1 &
exec %[1]s %[2]s/remorad.service %[3]s --holder external "$@"
`
	program := filepath.Join(t.TempDir(), "remorad")
	testbed.Must(t, os.WriteFile(program, fmt.Appendf(nil, script, confine, filepath.Join(testbed.Repo(), "cmd", "remorad"),
		strings.TrimSpace(remorad), s.Root), 0o755))
	s.UsePrograms(program, "")
	return confine
}

// wantConfined insists that a process has no more rights than its unit leaves it.
func wantConfined(t *testing.T, pid int, without uint64) {
	t.Helper()
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	testbed.Must(t, err)
	var capabilities uint64
	for line := range strings.Lines(string(p)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch key {
		case "CapBnd":
			_, err := fmt.Sscanf(value, "%x", &capabilities)
			testbed.Must(t, err)
		case "NoNewPrivs":
			if value != "1" {
				t.Errorf("process %d may gain rights", pid)
			}
		case "Seccomp":
			if value != "2" {
				t.Errorf("process %d may make every system call", pid)
			}
		}
	}
	if capabilities&without != 0 {
		t.Errorf("process %d has the capabilities %#x", pid, capabilities)
	}
}

// TestConfined: under the directives of the systemd units remorad does all that it does, with each back end: lazy layers,
// imports, containers that outlive it, disks and volumes.
func TestConfined(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			s := testbed.New(t, testbed.Options{Config: mountBy(backend) + "[volume]\njournal = \"64MiB\"\nlease = \"4s\"\n"})
			_, lazy := testbed.Pushed(t, s, testbed.Python)
			testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
			testbed.WaitFor(t, "the holder to end", func() bool { return s.HolderPID() == 0 })
			confine := confined(t, s)
			unit := filepath.Join(testbed.Repo(), "cmd", "remorad", "remorad.service")
			free := testbed.Tool(t, "remorad", "containerd-config", "--root", s.Root)
			if got := testbed.Tool(t, confine, unit, "remorad", "containerd-config", "--root", s.Root); got != free {
				t.Errorf("the probe finds other abilities under the unit:\n%s", got)
			}
			testbed.Must(t, s.StartRemorad())
			wantConfined(t, s.RemoradPID(), 1<<unix.CAP_SYS_MODULE|1<<unix.CAP_SYS_TIME|1<<unix.CAP_NET_ADMIN)
			wantConfined(t, s.HolderPID(), 1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_DAC_OVERRIDE)
			confinedImages(t, s, lazy, backend)
			if backend == backends[0] {
				plain := plainImage(t, s, testbed.Programs[1])
				_, err := s.Snapctl(t.Context(), "pull", plain)
				testbed.Must(t, err)
				testbed.RunImage(t, s, plain, "imported", "remora", testbed.Programs[1])
				confinedDisks(t, s)
			}
			for _, log := range []string{s.RemoradLog(), s.Root + ".holder.log"} {
				p, err := os.ReadFile(log)
				testbed.Must(t, err)
				for line := range strings.Lines(string(p)) {
					if strings.Contains(line, "not permitted") && !strings.Contains(line, "memory") { // that needs CAP_SYS_RESOURCE
						t.Errorf("%s: %s", filepath.Base(log), line)
					}
				}
			}
		})
	}
}

// confinedImages runs containers, one of which lives on while remorad is killed.
func confinedImages(t *testing.T, s *testbed.Stack, lazy, backend string) {
	t.Helper()
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 3, backend)
	_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "lives", "sleep", "1000")
	testbed.Must(t, err)
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	_, err = s.Ctr(t.Context(), "tasks", "exec", "--exec-id", "e", "lives", "python3", "-c", "import json, decimal")
	testbed.Must(t, err)
	testbed.RunImage(t, s, lazy, "after", "remora", testbed.Python)
	_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", "lives")
	testbed.Must(t, err)
}

// confinedDisks attaches a file and a volume and writes to both.
func confinedDisks(t *testing.T, s *testbed.Stack) {
	t.Helper()
	snapctl := func(args ...string) string {
		t.Helper()
		out, err := s.Snapctl(t.Context(), args...)
		testbed.Must(t, err)
		return strings.TrimSpace(out)
	}
	file := filepath.Join(t.TempDir(), "disk.img")
	testbed.Must(t, os.WriteFile(file, nil, 0o600))
	testbed.Must(t, os.Truncate(file, 256<<20))
	dev := snapctl("dev", "attach", file)
	testbed.Tool(t, "mkfs.ext4", "-q", dev)
	snapctl("dev", "detach", dev)
	store, mnt := "file:"+filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "a", "mnt")
	for _, fs := range testbed.FileSystems {
		snapctl("volume", "create", "--store", store, fs.Name, "1G")
		snapctl("volume", "mount", "--fs", fs.Name, fs.Name, mnt)
		testbed.Must(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("content"), 0o600))
		if st, err := os.Stat(filepath.Dir(mnt)); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("the unit's umask made a directory %v, %v", st, err)
		}
		snapctl("volume", "umount", fs.Name)
		snapctl("volume", "resize", fs.Name, "2G")
		snapctl("volume", "mount", fs.Name, mnt)
		snapctl("volume", "umount", fs.Name)
		snapctl("volume", "fsck", fs.Name)
	}
}
