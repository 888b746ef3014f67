package durable_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/internal/durable"
)

const harmSeed = 20261129

type record struct {
	Version int      `json:"version"`
	Names   []string `json:"names"`
}

var kind = durable.Kind{Name: "record.json", Lost: "the names", Do: "say them again"}

func checkRecord(r *record) error {
	switch {
	case r.Version > 1:
		return durable.ErrNewer
	case r.Version < 1:
		return errors.New("no such version")
	}
	return nil
}

func logTo(b *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func setAside(t *testing.T, dir string) []durable.Damage {
	t.Helper()
	all, err := durable.ListDamaged(dir, durable.Kind{Name: "other.json"}, kind)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestLoadJSON: a damaged file is set aside, whatever became of it, with a word in the log; after that there is none, until one
// is saved. What was set aside is found until it is removed.
func TestLoadJSON(t *testing.T) {
	more := []suite.Harm{}
	for name, content := range map[string]string{
		"of another shape": `{"version": 1, "names": {"a": "b"}}`, "of no version": `{"names": ["a"]}`, "a version below zero": `{"version": -1}`,
		"a version that is text": `{"version": "1"}`,
	} {
		more = append(more, suite.Harm{Name: name, Do: func(t testing.TB, path string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}})
	}
	for _, h := range append(suite.Harms(harmSeed), more...) {
		t.Run(h.Name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "record.json")
			want := record{1, []string{"a", "b"}}
			if err := durable.SaveJSON(path, want); err != nil {
				t.Fatal(err)
			}
			h.Do(t, path)
			was := suite.Kind(t, path)
			for _, want := range []durable.Found{durable.Damaged, durable.Absent} {
				var said bytes.Buffer
				r, found, err := durable.LoadJSON(path, kind, logTo(&said), checkRecord)
				if err != nil || found != want || r.Version != 0 || r.Names != nil {
					t.Fatalf("seed %d: loaded %+v, found %d, want %d: %v", harmSeed, r, found, want, err)
				}
				if tells := strings.Contains(said.String(), path) && strings.Contains(said.String(), kind.Lost) &&
					strings.Contains(said.String(), kind.Do); tells != (want == durable.Damaged) {
					t.Errorf("the log says %q", said.String())
				}
			}
			suite.MustLieAside(t, path, was)
			if err := durable.SaveJSON(path, want); err != nil {
				t.Fatal(err)
			}
			if r, found, err := durable.LoadJSON(path, kind, logTo(new(bytes.Buffer)), checkRecord); err != nil || found != durable.Whole ||
				len(r.Names) != 2 {
				t.Errorf("loaded %+v, %d, %v", r, found, err)
			}
			all := setAside(t, dir)
			if len(all) != 1 || all[0].File != path || all[0].Kind != kind || all[0].When.IsZero() {
				t.Fatalf("set aside: %+v", all)
			}
			if err := os.RemoveAll(all[0].Aside); err != nil {
				t.Fatal(err)
			}
			if all = setAside(t, dir); len(all) != 0 {
				t.Errorf("set aside: %+v", all)
			}
		})
	}
}

// TestSetAsideTwice: a file that is damaged again within the second takes no other's name.
func TestSetAsideTwice(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record.json")
	for range 3 {
		if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, err := durable.LoadJSON[record](path, kind, logTo(new(bytes.Buffer)), nil); err != nil || found != durable.Damaged {
			t.Fatalf("found %d, %v", found, err)
		}
	}
	for _, name := range []string{"record.json.damaged-yesterday", "record.json.damaged", "record2.json.damaged-20260102T030405Z"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all := setAside(t, dir); len(all) != 3 {
		t.Errorf("set aside: %+v", all)
	}
	if all := setAside(t, filepath.Join(dir, "none")); len(all) != 0 {
		t.Errorf("set aside in no directory: %+v", all)
	}
}

// TestNewer: a file of a later release is whole, and stays.
func TestNewer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	if err := durable.SaveJSON(path, record{Version: 2}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := durable.LoadJSON(path, kind, logTo(new(bytes.Buffer)), checkRecord); !errors.Is(err, durable.ErrNewer) ||
		!strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// TestMiss: a file that is gone is noted once.
func TestMiss(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record.json")
	var said bytes.Buffer
	for range 2 {
		if err := durable.Miss(path, kind, logTo(&said), "there are names"); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(said.String(), "level=ERROR"); n != 1 {
		t.Errorf("the log says %s", said.String())
	}
	all := setAside(t, dir)
	if len(all) != 1 {
		t.Fatalf("noted: %+v", all)
	}
	if p, err := os.ReadFile(all[0].Aside); err != nil || !strings.Contains(string(p), "there are names") {
		t.Errorf("the note says %q, %v", p, err)
	}
	if err := durable.Miss(filepath.Join(dir, "none", "record.json"), kind, logTo(&said), "why"); err == nil {
		t.Error("noted in a directory that is not there")
	}
}

// TestNotRead: a file that cannot be read now stays where it is, and is read the next time.
func TestNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	want := record{1, []string{"a"}}
	if err := durable.SaveJSON(path, want); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	none := unix.Rlimit{Cur: 0, Max: was.Max} // no descriptor is below
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, _, err := durable.LoadJSON(path, kind, logTo(&said), checkRecord)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	r, found, err := durable.LoadJSON(path, kind, logTo(&said), checkRecord)
	if err != nil || found != durable.Whole || len(r.Names) != 1 || said.Len() > 0 {
		t.Errorf("then loaded %+v, found %d: %v; the log says %q", r, found, err, said.String())
	}
}
