package testbed

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/faultdev"
)

// replay names the file of a recording that a test of power cuts cuts again, instead of making one.
const replay = "REMORA_REPLAY"

// A recording is what a test of power cuts has made, in a file: these, then the state that the test knows of it, then the
// Recorder's own.
type recording struct {
	Test string
	Seed uint64 // of all cuts
}

// Replay returns the recording that the caller of the test has named, and sets state to what KeepIfFailed was given with
// it. It returns nil if there is none to replay.
func Replay(t *testing.T, state any) (rec *faultdev.Recorder, seed uint64) {
	t.Helper()
	path := os.Getenv(replay)
	if path == "" {
		return nil, 0
	}
	rec, seed, err := load(path, t.Name(), state)
	Must(t, err)
	t.Logf("replaying %s, seed %d, %d flushes", path, seed, rec.Flushes())
	return rec, seed
}

func load(path, test string, state any) (*faultdev.Recorder, uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	in := gob.NewDecoder(bufio.NewReader(f))
	var r recording
	if err := in.Decode(&r); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	if r.Test != test {
		return nil, 0, fmt.Errorf("%s is a recording of %s", path, r.Test)
	}
	if err := in.Decode(state); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	rec, err := faultdev.Load(in)
	return rec, r.Seed, err
}

// KeepIfFailed has the recording of a test written down, with the seed of its cuts and what else the test must know, if the
// test fails. The same cuts can then be made of it again. state has exported fields alone.
func KeepIfFailed(t *testing.T, rec *faultdev.Recorder, seed uint64, state any) {
	t.Helper()
	if os.Getenv(replay) != "" {
		return // it is there already
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		dir := filepath.Join(Work(), "failed")
		path := filepath.Join(dir, fmt.Sprintf("%s-%d.recording", strings.ReplaceAll(t.Name(), "/", "-"), seed))
		if err := errors.Join(os.MkdirAll(dir, 0o755), save(path, recording{t.Name(), seed}, state, rec)); err != nil {
			t.Errorf("the recording is lost: %v", err)
			return
		}
		this := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
		t.Logf("the recording is kept in %s: with %s=%s, go test -count=1 -run '%s' makes the same cuts", path, replay, path, this)
	})
}

func save(path string, r recording, state any, rec *faultdev.Recorder) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriter(f)
	out := gob.NewEncoder(buffered)
	err = errors.Join(out.Encode(r), out.Encode(state), rec.Save(out))
	return errors.Join(err, buffered.Flush(), f.Close())
}
