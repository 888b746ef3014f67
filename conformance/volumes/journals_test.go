package volumes_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/testbed"
)

// listed is what journal ls --json says of a journal.
type listed struct {
	ID, Volume, State, Reason, File string
	Writes                          uint64
	Bytes                           int64
	AtMost                          bool `json:"at_most"`
}

func journalsOf(t *testing.T, s *testbed.Stack) (all []listed) {
	t.Helper()
	var reply struct{ Journals []listed }
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "journal", "ls", "--json")), &reply))
	return reply.Journals
}

// TestVolumeJournals: a journal is listed as what it is while its volume is attached, was given up to it, and was taken by another node;
// what it holds can be seen in a read-only volume beside the real one, and it is removed only when nothing is lost with it, or that is
// accepted. One that holds nothing goes by itself.
func TestVolumeJournals(t *testing.T) {
	t.Parallel()
	a := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	b := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, a, "data", "--class", "local", "--max-age", "1h")
	write := func(s *testbed.Stack, text string) {
		dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "--store", store, "data", "--accept-loss"))
		f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
		testbed.Must(t, err)
		p := blockdev.AlignedBuffer(4096)
		copy(p, text)
		_, err = f.WriteAt(p, 0)
		testbed.Must(t, err)
		testbed.Must(t, f.Sync())
		testbed.Must(t, f.Close())
	}
	read := func(s *testbed.Stack, name string) string {
		dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "--store", store, name))
		f, err := os.Open(dev)
		testbed.Must(t, err)
		p := make([]byte, 4096)
		_, err = f.ReadAt(p, 0)
		testbed.Must(t, err)
		testbed.Must(t, f.Close())
		snapctl(t, s, "volume", "detach", name)
		return strings.TrimRight(string(p), "\x00")
	}
	mustList := func(s *testbed.Stack, state string, writes uint64) listed {
		t.Helper()
		all := journalsOf(t, s)
		if len(all) != 1 || all[0].State != state || all[0].Writes != writes || all[0].AtMost || all[0].Volume != "data" {
			t.Fatalf("journals %+v, want one of data, %s, with %d writes", all, state, writes)
		}
		return all[0]
	}
	write(a, "first")
	id := mustList(a, "in use", 0).ID
	mustRefuse(t, a, "its volume is attached here", "volume", "journal", "rm", id, "--accept-loss")
	mustRefuse(t, a, "its volume is attached here", "volume", "journal", "salvage", id, "--into", "no")
	snapctl(t, a, "volume", "detach", "data")
	if all := journalsOf(t, a); len(all) > 0 {
		t.Errorf("journals %+v of a volume that was detached", all)
	}

	write(a, "second")
	snapctl(t, a, "volume", "detach", "--abandon-to-journal", "data")
	id = mustList(a, "kept", 1).ID
	if out := snapctl(t, a, "volume", "ls"); !strings.Contains(out, "1 journals on this node") {
		t.Errorf("ls says nothing of a journal:\n%s", out)
	}
	mustRefuse(t, a, "no other copy is known", "volume", "journal", "rm", id)

	write(b, "third") // after the lease of a has ended
	snapctl(t, b, "volume", "detach", "data")
	left := mustList(a, "orphan", 1)
	if left.Bytes != 4096 || !strings.Contains(left.Reason, "gone on without it") {
		t.Errorf("the journal is %+v", left)
	}
	mustRefuse(t, a, "no other copy is known", "volume", "journal", "rm", id)
	mustRefuse(t, a, "no such journal", "volume", "journal", "rm", "zzzz")
	out := snapctl(t, a, "volume", "journal", "salvage", id[:10], "--into", "old")
	t.Log(out)
	if got := read(a, "old"); got != "second" {
		t.Errorf("the salvaged volume has %q", got)
	}
	if got := read(b, "data"); got != "third" {
		t.Errorf("the volume has %q", got)
	}
	mustRefuse(t, a, "a volume of this name exists", "volume", "journal", "salvage", id, "--into", "data")
	if out := snapctl(t, a, "volume", "journal", "rm", "--accept-loss", id); !strings.Contains(out, "removed") {
		t.Errorf("rm says %q", out)
	}
	if _, err := os.Stat(left.File); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", left.File, err)
	}

	// A journal that nothing was written to holds nothing.
	snapctl(t, a, "volume", "attach", "data")
	snapctl(t, a, "volume", "detach", "--abandon-to-journal", "data")
	mustList(a, "kept", 0)
	write(b, "fourth")
	snapctl(t, b, "volume", "detach", "data")
	testbed.Must(t, a.RestartRemorad(unix.SIGKILL))
	testbed.WaitFor(t, "a journal that holds nothing to go", func() bool { return len(journalsOf(t, a)) == 0 })
	snapctl(t, a, "volume", "rm", "old")
	snapctl(t, a, "volume", "rm", "data")
	for _, s := range []*testbed.Stack{a, b} {
		if all, err := filepath.Glob(filepath.Join(s.Root, "volumes", "journals", "*-*")); err != nil || len(all) > 0 {
			t.Error(fmt.Sprint(all), err)
		}
	}
}
