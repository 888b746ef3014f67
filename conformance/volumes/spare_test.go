package volumes_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestVolumeSpareJournal: attaching with the default configuration writes no journal to its end, which takes a disk seconds: the first
// time on a node, after a detach and after a kill. The second one has the first one's file. How long each takes is printed.
func TestVolumeSpareJournal(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info"})
	store := newVolume(t, s, "data")
	journals := filepath.Join(s.Root, "volumes", "journals")
	inodes := func(pattern string) (all []uint64) {
		files, err := filepath.Glob(filepath.Join(journals, pattern))
		testbed.Must(t, err)
		for _, f := range files {
			var st unix.Stat_t
			testbed.Must(t, unix.Stat(f, &st))
			all = append(all, st.Ino)
		}
		return all
	}
	// written returns how many bytes remorad has had the kernel write.
	written := func() (n int64) {
		p, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", s.RemoradPID()))
		testbed.Must(t, err)
		_, after, _ := strings.Cut(string(p), "\nwrite_bytes: ")
		_, err = fmt.Sscan(after, &n)
		testbed.Must(t, err)
		return n
	}
	attach := func(what string) (took time.Duration) {
		before, began := written(), time.Now()
		snapctl(t, s, "volume", "attach", "data")
		took = time.Since(began)
		n := written() - before
		t.Logf("%s attach: %.3f s, %d KiB written", what, took.Seconds(), n>>10)
		if n > 128<<20 {
			t.Errorf("the %s attach writes %d bytes", what, n)
		}
		return took
	}
	attach("first")
	first := inodes("*.journal")
	snapctl(t, s, "volume", "detach", "data")
	if left := inodes("*.journal"); len(left) > 0 {
		t.Errorf("%d journals are left after detach", len(left))
	}
	spare := inodes("spare")
	attach("second")
	second := inodes("*.journal")
	if len(first) != 1 || len(second) != 1 || len(spare) != 1 || second[0] != spare[0] {
		t.Errorf("the journal was %v, the spare %v, the journal is %v", first, spare, second)
	}
	snapctl(t, s, "volume", "detach", "data")
	testbed.Must(t, s.RestartRemorad(unix.SIGKILL))
	attach("third")
	snapctl(t, s, "volume", "detach", "data")
	mustBeRight(t, s, "data", store)
}
