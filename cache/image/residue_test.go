package image

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/remora-storage/remora/cache/budget"
)

// newResidue returns an empty log for some units.
func newResidue(t *testing.T, path string, units int) *Residue {
	t.Helper()
	var codec residueCodec
	codec.init()
	r := &Residue{path: path, units: units, budget: budget.New(0, slog.New(slog.DiscardHandler)), codec: &codec}
	t.Cleanup(r.close)
	return r
}

// TestResidue: the latest record of each unit is found, in this life and the next, and a guess that was dropped is none.
func TestResidue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "residue")
	r := newResidue(t, path, 100)
	for u := uint32(0); u < 90; u += 3 {
		r.keep(u, bytes.Repeat([]byte{byte(u)}, int(u)+1), u%2 == 0)
		if _, ok := r.At(u); !ok { // asked for between the others
			t.Fatalf("unit %d is not there", u)
		}
	}
	r.keep(6, []byte("later"), false)
	want := func(r *Residue) {
		t.Helper()
		for u := range uint32(101) {
			at, ok := r.At(u)
			if has := u < 90 && u%3 == 0; ok != has || has && r.Has(u) != true {
				t.Fatalf("unit %d: %v", u, ok)
			} else if !has {
				continue
			}
			got, err := r.Read(at)
			is, guess := bytes.Repeat([]byte{byte(u)}, int(u)+1), u%2 == 0
			if u == 6 {
				is, guess = []byte("later"), false
			}
			if err != nil || !bytes.Equal(got, is) || at.Guess() != guess {
				t.Errorf("unit %d: %q, a guess: %v, %v", u, got, at.Guess(), err)
			}
		}
	}
	want(r)
	r.trim() // once somebody has asked
	r.trim()
	want(r)
	again := newResidue(t, path, 100)
	again.load()
	want(again)
	if !again.DropGuesses() || again.Has(12) || !again.Has(6) || !again.Has(9) {
		t.Error("guesses stay, or others went")
	}
}

// TestResidueOfMany: to find records of many units takes eight bytes a unit, and what was read of the log is not read again as it grows.
func TestResidueOfMany(t *testing.T) {
	const units = 50_000
	path := filepath.Join(t.TempDir(), "residue")
	r := newResidue(t, path, units)
	for u := range uint32(units / 2) {
		r.keep(2*u, nil, false)
	}
	allocated := func(do func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	if n := allocated(func() { r.At(2) }); n > 8*units+100_000 {
		t.Errorf("%d bytes for %d units", n, units)
	}
	// Whoever reads the beginning once more ends there.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, residueHeader), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.keep(1, []byte("new"), false)
	for _, u := range []uint32{1, 2, units - 2} {
		if _, ok := r.At(u); !ok {
			t.Errorf("unit %d is not found any longer", u)
		}
	}
}
