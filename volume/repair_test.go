package volume

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/remote/store"
)

// corrupt changes a byte of each object whose key has a part.
func corrupt(t *testing.T, s store.Store, part string, at func(p []byte) int) int {
	t.Helper()
	var keys []string
	if err := s.List(t.Context(), "v/", func(o store.Object) bool {
		if strings.Contains(o.Key, part) {
			keys = append(keys, o.Key)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		p, _, err := s.Get(t.Context(), k, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(k, "/seg/") && len(p) < Block { // it has holes alone
			continue
		}
		p[at(p)] ^= 0x20
		if _, err := s.Put(t.Context(), k, p); err != nil {
			t.Fatal(err)
		}
	}
	return len(keys)
}

// TestCorrupt: bytes that change in the store are found by reads and by Check, and named.
func TestCorrupt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		part   string
		at     func([]byte) int
		read   bool // a read of everything meets it
		report string
	}{
		"a block":        {"/seg/", func([]byte) int { return segmentHeader + frameHeader + 100 }, true, "of segment"},
		"a frame header": {"/seg/", func([]byte) int { return segmentHeader + 5 }, true, "header is wrong"},
		"a table":        {"/seg/", func(p []byte) int { return len(p) - segmentFooter - 2 }, false, "table of segment"},
		"a map node":     {"/map/", func([]byte) int { return nodeHeader + 3 }, true, "map node at"},
	} {
		t.Run(name, func(t *testing.T) {
			v, st, attach := newTestVolume(t, 8<<20, Remote)
			want := make([]byte, 8<<20)
			churn(t, v, want, rand.New(rand.NewPCG(4, 4)), 2000)
			if err := v.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, st)
			if corrupt(t, st, c.part, c.at) == 0 {
				t.Fatal("there is nothing to corrupt")
			}
			st.damaged("v", c.report)
			if !c.read {
				return
			}
			v = attach()
			defer v.Close()
			if _, err := v.ReadAt(t.Context(), make([]byte, 8<<20), 0); !errors.Is(err, ErrCorrupt) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// TestRepair: a map that is lost is made anew from the one before and the segments since. Without that it is refused: what
// was trimmed would come back.
func TestRepair(t *testing.T) {
	t.Parallel()
	for name, newest := range map[string]int{"the newest pack": 1, "every pack": 1 << 20} {
		beyond := newest > 1
		t.Run(name, func(t *testing.T) {
			v, st, attach := newTestVolume(t, 8<<20, Remote)
			want := make([]byte, 8<<20)
			churn(t, v, want, rand.New(rand.NewPCG(5, 5)), 3000)
			if err := v.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
			if done, err := Repair(t.Context(), st, "v", func(string) {}); err != nil || done != "" {
				t.Fatalf("repair of what is whole: %q, %v", done, err)
			}
			var packs []string
			if err := st.List(t.Context(), "v/", func(o store.Object) bool {
				if strings.Contains(o.Key, "/map/") {
					packs = append(packs, o.Key)
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			slices.Reverse(packs)
			for _, k := range packs[:min(newest, len(packs))] {
				if err := st.Delete(t.Context(), k); err != nil {
					t.Fatal(err)
				}
			}
			done, err := Repair(t.Context(), st, "v", func(string) {})
			if beyond {
				st.damaged("v", "the map's root")
				if !errors.Is(err, ErrBeyondRepair) {
					t.Errorf("repair without any map: %q, %v", done, err)
				}
				return
			}
			if err != nil || done == "" {
				t.Fatalf("repair: %q, %v", done, err)
			}
			t.Log(done)
			v = attach()
			mustHold(t, v, want)
			if err := v.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, st)
		})
	}
}
