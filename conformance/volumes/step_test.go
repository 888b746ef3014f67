package volumes_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// volumeSteps are the system calls between which remorad's work for a volume happens: records and superblocks of the journal,
// its syncs, objects that are made, put in place and locked in a file store, what is deleted, and answers to the kernel.
var volumeSteps = []string{"pwrite64", "fdatasync", "fsync", "renameat", "unlinkat", "flock", "writev,write", "openat", "pread64"}

// killAtStep has the kernel kill remorad when one of its threads makes a system call for the nth time from now on, before
// the call does anything. It reports whether that happened in time, and kills remorad otherwise.
func killAtStep(t *testing.T, s *testbed.Stack, calls string, n int, within time.Duration) bool {
	t.Helper()
	c, err := testbed.Command(t.Context(), "strace", "-f", "-qq", "-o", "/dev/null", "-p", fmt.Sprint(s.RemoradPID()),
		"-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", calls, n))
	testbed.Must(t, err)
	testbed.Must(t, c.Start())
	hit := true
	select {
	case <-s.RemoradEnded():
	case <-time.After(within): // nothing of the kind was due
		hit = false
	}
	_ = c.Process.Kill() // it may have ended; told to end, it would wait for what remorad has started, which may wait for the next one
	_ = c.Wait()
	testbed.Must(t, s.StopRemorad(unix.SIGKILL))
	return hit
}

// TestVolumeKilledAtSteps: remorad is killed before each kind of step of its work for a volume, under concurrent writers and
// flushes, and nothing acknowledged is lost.
func TestVolumeKilledAtSteps(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	for _, class := range []string{"remote", "local"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
			mnt := filepath.Join(t.TempDir(), "mnt")
			store := newVolume(t, s, "data", "--class", class, "--max-age", "1s")
			snapctl(t, s, "volume", "mount", "data", mnt)
			unmountIfFailed(t, mnt)
			hits, i := map[string]int{}, 0
			writers := testbed.EndUnderLoad(t, s, mnt, testbed.Rounds(2, 50)*len(volumeSteps), func(rnd *rand.Rand) {
				step, n, within := volumeSteps[i%len(volumeSteps)], 1+rnd.IntN(6), 10*time.Second
				if i >= len(volumeSteps) && hits[step] == 0 { // rare: class remote syncs its journal once in many megabytes
					n, within = 1, 2*time.Minute
				}
				i++
				if killAtStep(t, s, step, n, within) {
					hits[step]++
				}
			})
			t.Logf("killed at: %v", hits)
			for _, step := range volumeSteps {
				if hits[step] == 0 {
					t.Errorf("remorad was never killed before %s", step)
				}
			}
			testbed.Must(t, s.AwaitContainerd())
			mustComeBack(t, s, mnt, writers)
			mustBeRight(t, s, "data", store)
		})
	}
}

// traced reports whether each thread of a process is traced.
func traced(pid int) bool {
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, name := range all {
		if p, err := os.ReadFile(name); err == nil && strings.Contains(string(p), "TracerPid:\t0\n") {
			return false
		}
	}
	return err == nil && len(all) > 0
}

// TestVolumeKilledDetaching: a remorad that is killed while the kernel asks it to flush a device that it takes away is gone
// nevertheless: the next one starts, and what was written is there.
func TestVolumeKilledDetaching(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, s, "data", "--class", "local")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	want := bytes.Repeat([]byte("data"), 1<<18)
	testbed.Must(t, os.WriteFile(dev, want, 0)) // which flushes nothing
	detach := make(chan error, 1)
	pid := s.RemoradPID()
	go func() {
		for range 60000 {
			if traced(pid) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		_, err := s.Snapctl(t.Context(), "volume", "detach", "data")
		detach <- err
	}()
	if !killAtStep(t, s, "fdatasync", 1, time.Minute) {
		t.Error("a detach flushes nothing")
	}
	testbed.Must(t, s.StartRemoradOnly())
	t.Logf("the detach: %v", <-detach)
	snapctl(t, s, "volume", "detach", "data")
	f, err := os.Open(strings.TrimSpace(snapctl(t, s, "volume", "attach", "data")))
	testbed.Must(t, err)
	got := make([]byte, len(want))
	_, err = io.ReadFull(f, got)
	testbed.Must(t, errors.Join(err, f.Close()))
	if !bytes.Equal(got, want) {
		t.Error("what was written is not there")
	}
	snapctl(t, s, "volume", "detach", "data")
	mustBeRight(t, s, "data", store)
}
