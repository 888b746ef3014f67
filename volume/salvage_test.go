package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/remora-storage/remora/remote/store/simstore"
)

// TestSalvage: a node is cut off with writes that its journal has alone, and another one goes on without them, for a while or for long,
// or deletes the volume. What is salvaged is the volume as the first node left it, block by block, or the report names the block. The
// volume and the journal stay as they are.
func TestSalvage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		commits bool // the first node had a map when it was cut off
		later   int  // writes of the second node; -1: there is none
		removed bool // the second node deletes the volume
		exact   bool
		certain bool
	}{
		"nobody has taken it":                 {commits: true, later: -1, exact: true, certain: true},
		"taken, and not written to":           {commits: true, later: 0, exact: true, certain: true},
		"taken, and written to":               {commits: true, later: 100, certain: true}, // and a new map, if it is due
		"taken, and a new map":                {commits: true, later: 1500, certain: true},
		"taken, and many maps":                {commits: true, later: 6000, certain: true},
		"nothing was in the store, and taken": {later: 100, certain: true},
		"nothing was in the store, many maps": {later: 3000, exact: true, certain: true},
		"deleted":                             {commits: true, later: 0, removed: true, certain: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const size = 16 << 20
				st := newTestStore(t)
				h, at, v := newOpened(t, st, Spec{Size: size, Class: Local}, Options{})
				r := rand.New(rand.NewPCG(11, 13))
				want := make([]byte, size)
				if c.commits {
					churn(t, v, want, r, 1500)
				}
				if err := v.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				stored := bytes.Clone(want)
				st.SetFaults(simstore.Faults{Outage: errors.New("out")})
				for i := range 50 {
					lba := r.IntN(size / Block)
					part := want[lba*Block:][:Block]
					stampBlock(part, uint64(lba), r.Uint64())
					if i%10 == 9 {
						clear(part)
						if err := v.Trim(t.Context(), int64(lba)*Block, Block); err != nil {
							t.Fatal(err)
						}
					} else if err := v.WriteAt(t.Context(), part, int64(lba)*Block); err != nil {
						t.Fatal(err)
					}
				}
				mustFlush(t, v)
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
				st.SetFaults(simstore.Faults{})
				if c.later >= 0 {
					w, err := accept(t, st, newSimNode(t), h.ID)
					if err != nil {
						t.Fatal(err)
					}
					mustHold(t, w, stored)
					churn(t, w, bytes.Clone(stored), r, c.later)
					if err := w.Detach(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if c.removed {
					if _, err := Remove(t.Context(), st, "v"); err != nil {
						t.Fatal(err)
					}
				}
				var id ID
				for id = range at.journals {
				}
				disk, err := at.Open(h.ID, id)
				if err != nil {
					t.Fatal(err)
				}
				content, err := ReadJournal(disk, h.ID, id, 0)
				if err != nil {
					t.Fatal(err)
				}
				fate, err := FateOf(t.Context(), st, h.ID, id, content.Epoch)
				if err != nil {
					t.Fatal(err)
				}
				if fate.Certain != c.certain || fate.Named != (c.later < 0) || (fate.Head == nil) != c.removed {
					t.Errorf("the journal's fate is %+v", fate)
				}
				left, err := ReadJournal(disk, h.ID, id, fate.Write)
				if err != nil || !c.removed && left.Bytes != 45*Block || left.Last < fate.Write+50 {
					t.Errorf("the journal holds %+v beside write %d of the store, and 45 blocks were written (%v)", left, fate.Write, err)
				}
				s, err := Salvage(t.Context(), st, h.ID, id, disk, "salvaged", func(string) {})
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("made of %s; %d missing, %v problems, %d stale parts, %d bytes are the journal's", s.Base(), s.Missing, s.Problems,
					len(s.Stale), s.JournalSize)
				if !c.removed && (s.Size != size || s.JournalSize == 0 || s.JournalSize > content.Bytes) {
					t.Errorf("%d bytes, %d of the journal", s.Size, s.JournalSize)
				}
				got := readRebuilt(t, st, s.ID, s.Size)
				wrong := 0
				for b := 0; b < len(want) && b < len(got); b += Block {
					if bytes.Equal(got[b:b+Block], want[b:b+Block]) {
						continue
					}
					wrong++
					if c.exact || !c.removed && !within(s.Stale, int64(b)) && !within(s.Lost, int64(b)) {
						t.Fatalf("block %d is wrong, and the report does not say so", b/Block)
					}
				}
				if c.exact && (s.Missing > 0 || len(s.Problems) > 0) {
					t.Errorf("%d are missing, %v", s.Missing, s.Problems)
				}
				if c.removed && len(s.Problems) == 0 {
					t.Error("nothing says that the volume is no more")
				}
				t.Logf("%d blocks are wrong, and named", wrong)
				if _, err := Salvage(t.Context(), st, h.ID, id, disk, "salvaged", func(string) {}); !errors.Is(err, ErrNameTaken) {
					t.Errorf("salvaged again: %v", err)
				}
				if again, err := ReadJournal(disk, h.ID, id, 0); err != nil || again != content {
					t.Errorf("the journal holds %+v now, %+v before (%v)", again, content, err)
				}
			})
		})
	}
}

// TestStaleOfLarge: of the largest volume, too, all is in doubt that the journal and the segments after it do not vouch for.
func TestStaleOfLarge(t *testing.T) {
	t.Parallel()
	const known = uint64(5) << 40 / Block
	for _, size := range []int64{MinSize, 16<<40 - Block, 16 << 40, 16<<40 + Block, MaxSize} {
		h := &Head{Size: size}
		b := &rebuild{Rebuilt: Rebuilt{Size: size, Missing: 1}, head: h, before: h}
		want := []Range{{0, size}}
		if size > int64(known+1)*Block {
			b.certain.set(extent{lba: known, blocks: 1})
			want = []Range{{0, int64(known) * Block}, {int64(known+1) * Block, size - int64(known+1)*Block}}
		}
		if b.measure(); !slices.Equal(b.Stale, want) {
			t.Errorf("of %d bytes %v are stale, want %v", size, b.Stale, want)
		}
	}
}
