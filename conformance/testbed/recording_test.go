package testbed

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
)

// TestReplay: what a failed test has kept is what its replay gets, and the replay of another test is left alone.
func TestReplay(t *testing.T) {
	type state struct {
		First int
		Names []string
	}
	rec := faultdev.NewRecorder(suite.RAM(t, 1<<20))
	Must(t, rec.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 8192))
	Must(t, rec.Flush(t.Context()))
	dir := t.TempDir()
	mine, others := filepath.Join(dir, "mine"), filepath.Join(dir, "others")
	want := state{7, []string{"a", "b"}}
	Must(t, save(mine, recording{t.Name(), 42}, want, rec))
	Must(t, save(others, recording{"TestAnother", 42}, want, rec))

	t.Setenv(replay, "")
	if rec, _ := Replay(t, new(state)); rec != nil {
		t.Error("replayed what nobody has named")
	}
	t.Setenv(replay, mine)
	var got state
	again, seed := Replay(t, &got)
	if seed != 42 || again.Flushes() != 1 || again.Size() != 1<<20 || got.First != 7 || !slices.Equal(got.Names, want.Names) {
		t.Errorf("seed %d, %d flushes, %+v", seed, again.Flushes(), got)
	}
	if _, _, err := load(others, t.Name(), &got); err == nil {
		t.Error("the recording of another test was loaded")
	}
	if _, _, err := load(filepath.Join(dir, "none"), t.Name(), &got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no recording: %v", err)
	}
}
