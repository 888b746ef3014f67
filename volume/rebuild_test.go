package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/remora-storage/remora/remote/store"
)

// TestRebuild: whatever is lost, what a rebuilt volume holds is right, or its report names it.
func TestRebuild(t *testing.T) {
	t.Parallel()
	spoil := func(t *testing.T, s *testStore, key string, at func(p []byte) int) {
		t.Helper()
		p, _, err := s.Get(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		p = bytes.Clone(p)
		p[at(p)] ^= 0xff
		if _, err := s.Put(t.Context(), key, p); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(t *testing.T, s *testStore, keys ...string) {
		t.Helper()
		for _, k := range keys {
			if err := s.Delete(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		}
	}
	middle := func(p []byte) int { return len(p) / 2 }
	inTable := func(p []byte) int { return len(p) - segmentFooter - 1 }
	inFrame := func([]byte) int { return segmentHeader + frameHeader + 7 }
	for name, c := range map[string]struct {
		damage  func(t *testing.T, s *testStore, head string, segments, packs []string)
		report  string // what Check says of the damaged volume
		exact   bool   // every block is right
		guessed bool
		lost    bool
		either  bool // lost or not: that depends on what the last checkpoint had
	}{
		"nothing": {
			damage: func(*testing.T, *testStore, string, []string, []string) {},
			exact:  true,
		},
		"the head": {
			damage: func(t *testing.T, s *testStore, head string, _, _ []string) { spoil(t, s, head, middle) },
			report: "head: corrupt", exact: true, guessed: true,
		},
		"the head's object": {
			damage: func(t *testing.T, s *testStore, head string, _, _ []string) { remove(t, s, head) },
			report: "no such volume", exact: true, guessed: true,
		},
		"every map": {
			damage: func(t *testing.T, s *testStore, _ string, _, packs []string) { remove(t, s, packs...) },
			report: "the map's root",
		},
		"the head and every map": {
			damage: func(t *testing.T, s *testStore, head string, _, packs []string) {
				spoil(t, s, head, middle)
				remove(t, s, packs...)
			},
			report: "head: corrupt", guessed: true,
		},
		"a segment": {
			damage: func(t *testing.T, s *testStore, _ string, segments, _ []string) {
				remove(t, s, segments[len(segments)-1])
			},
			report: "it is in use, and is not there", lost: true,
		},
		"the older half": {
			damage: func(t *testing.T, s *testStore, _ string, segments, _ []string) {
				remove(t, s, segments[:len(segments)/2]...)
			},
			report: "it is in use, and is not there", lost: true,
		},
		"a segment's table": {
			damage: func(t *testing.T, s *testStore, _ string, segments, packs []string) {
				spoil(t, s, segments[len(segments)-1], inTable)
				remove(t, s, packs...) // a map that has the segment's extents needs no table
			},
			report: "the map's root", lost: true,
		},
		"a segment's table, but no map": {
			damage: func(t *testing.T, s *testStore, _ string, segments, _ []string) {
				spoil(t, s, segments[len(segments)-1], inTable)
			},
			report: "table of segment", either: true,
		},
		"a segment's frame": {
			damage: func(t *testing.T, s *testStore, _ string, segments, _ []string) {
				spoil(t, s, segments[len(segments)-1], inFrame)
			},
			report: "frame at", lost: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, st, _ := newTestVolume(t, 8<<20, Remote)
			want := make([]byte, 8<<20)
			churn(t, v, want, rand.New(rand.NewPCG(5, 5)), 3000)
			id := v.ID()
			if err := v.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
			var segments, packs []string
			if err := st.List(t.Context(), "v/", func(o store.Object) bool {
				switch {
				case strings.Contains(o.Key, "/seg/"):
					segments = append(segments, o.Key)
				case strings.Contains(o.Key, "/map/"):
					packs = append(packs, o.Key)
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			c.damage(t, st, headKey(id), segments, packs)
			if c.report != "" {
				st.damaged("v", c.report)
			}
			r, err := Rebuild(t.Context(), st, "v", "copy", func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("map %d, segments %d, ignored %d, missing %d, stale %d ranges, lost %d, problems %q",
				r.Map, r.Segments, r.Ignored, r.Missing, len(r.Stale), len(r.Lost), r.Problems)
			if r.Guessed != c.guessed || !c.either && (len(r.Lost) > 0) != c.lost && (r.Missing > 0) != c.lost {
				t.Errorf("guessed %v, lost %d, missing %d", r.Guessed, len(r.Lost), r.Missing)
			}
			got := readRebuilt(t, st, r.ID, r.Size)
			for b := 0; b < len(want); b += Block {
				is := make([]byte, Block)
				if b < len(got) {
					is = got[b:][:Block]
				}
				if bytes.Equal(is, want[b:][:Block]) {
					continue
				}
				gone := r.Missing > 0 && !c.exact && bytes.Equal(is, make([]byte, Block))
				if !within(r.Stale, int64(b)) && !within(r.Lost, int64(b)) && !gone {
					t.Fatalf("block %d is wrong and not reported", b/Block)
				}
				if c.exact {
					t.Fatalf("block %d is wrong", b/Block)
				}
			}
			check, err := Check(t.Context(), st, "copy", true, func(string) {})
			if err != nil || len(check.Problems) > 0 || check.Unused.Objects > 0 {
				t.Errorf("check of the copy: %+v, %v", check, err)
			}
			if _, err := Rebuild(t.Context(), st, "v", "copy", func(string) {}); !errors.Is(err, ErrNameTaken) {
				t.Errorf("a second rebuild under the same name: %v", err)
			}
		})
	}
}

// TestRebuildHalfMade: a read-only volume's head does not say that a file system is being made, which nobody can do there.
func TestRebuildHalfMade(t *testing.T) {
	t.Parallel()
	for fs, want := range map[string]string{"xfs": "xfs", "making xfs": ""} {
		v, st, _ := newTestVolume(t, 8<<20, Remote)
		if err := v.SetFS(t.Context(), fs); err != nil {
			t.Fatal(err)
		}
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		r, err := Rebuild(t.Context(), st, "v", "copy", func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		if h, _, err := readHead(t.Context(), st, r.ID); err != nil || h.FS != want {
			t.Errorf("of %q: %+v, %v; want %q", fs, h, err, want)
		}
	}
}

func within(all []Range, off int64) bool {
	for _, r := range all {
		if r.Off <= off && off < r.Off+r.Len {
			return true
		}
	}
	return false
}

func readRebuilt(t *testing.T, st store.Store, id ID, size int64) []byte {
	t.Helper()
	v, err := openVolume(t, st, newSimNode(t), id, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, size)
	if _, err := v.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if err := v.WriteAt(t.Context(), p[:Block], 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write to a read-only volume: %v", err)
	}
	if err := v.Trim(t.Context(), 0, Block); !errors.Is(err, ErrReadOnly) {
		t.Errorf("trim of a read-only volume: %v", err)
	}
	if err := v.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCounting: what an epoch had stored and not committed when another took the volume never counts, even if the first of
// the other's segments were deleted since.
func TestCounting(t *testing.T) {
	t.Parallel()
	segment := func(epoch, seq, after, write uint64) leftover {
		return leftover{at: logPosition{epoch: epoch, seq: seq, after: after, write: write}}
	}
	all := []leftover{
		segment(1, 1, 0, 10), segment(1, 2, 10, 20), segment(1, 3, 20, 30), segment(1, 4, 30, 40), // 3 and 4 were not committed
		segment(2, 3, 20, 25), segment(2, 4, 25, 35), segment(2, 5, 35, 36), // 5 was not
		segment(4, 6, 35, 50), // its first, 5, is gone
	}
	var got []uint64
	for _, s := range counting(all, 1) {
		got = append(got, s.at.epoch*100+s.at.seq)
	}
	want := []uint64{102, 203, 204, 406}
	if len(got) != len(want) {
		t.Fatalf("%v count, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v count, want %v", got, want)
		}
	}
}
