package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestDiaryFile: what was written is read, by another life too, and what is damaged says nothing.
func TestDiaryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases", "store")
	d := NewDiaryFile(path)
	if e, err := d.Read(); err != nil || e != (DiaryEntry{}) {
		t.Errorf("nothing was written: %+v, %v", e, err)
	}
	for range 3 {
		want := DiaryEntry{Word{NewID(), NewID()}, Word{NewID(), NewID()}}
		if err := d.Write(want); err != nil {
			t.Fatal(err)
		}
		if e, err := NewDiaryFile(path).Read(); err != nil || e != want {
			t.Errorf("%+v, %v; want %+v", e, err, want)
		}
	}
	for _, harm := range []string{"", "x", strings.Repeat("0", 32) + "\n", strings.Repeat("z", 132)} {
		if err := os.WriteFile(path, []byte(harm), 0o600); err != nil {
			t.Fatal(err)
		}
		if e, err := d.Read(); err != nil || e != (DiaryEntry{}) {
			t.Errorf("%q is read as %+v, %v", harm, e, err)
		}
	}
}

// TestCopiedDiary: a node takes its lease again without waiting if the lease shows what its own root wrote last, in this start of
// the machine. Who has a copy of the root, or runs on a machine whose start is not known, waits, and hears the other one.
func TestCopiedDiary(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		boot, again string
		old         bool // the diary is as it was some renewals ago
		quick       bool
	}{
		"its own":                      {"1", "1", false, true},
		"a copy":                       {"1", "1", true, false},
		"another start of the machine": {"1", "2", false, false},
		"starts are not known":         {"", "", false, false},
	} {
		for _, alive := range []bool{false, true} {
			if alive && c.quick {
				continue // the root's lock keeps it from that
			}
			t.Run(name+map[bool]string{true: ", it lives"}[alive], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					_, sure := newMarked(t)
					at := newSimNode(t)
					copied := &simDiary{}
					first := NewMember(sure, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: c.boot, Diary: &at.diary, TTL: testTTL})
					if err := first.Acquire(t.Context()); err != nil {
						t.Fatal(err)
					}
					copied.e, _ = at.diary.Read()
					time.Sleep(time.Minute)
					if !c.old {
						copied.e, _ = at.diary.Read()
					}
					if !alive {
						first.Release()
					}
					begin := time.Now()
					second := NewMember(sure, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: c.again, Diary: copied, TTL: testTTL})
					err := second.Acquire(t.Context())
					waited := time.Since(begin)
					if alive {
						if err == nil || !strings.Contains(err.Error(), "copy of the other's root") {
							t.Errorf("after %v: %v", waited, err)
						}
						if margin, holds := first.Margin(); margin <= 0 || !holds {
							t.Errorf("the first one is disturbed: %v, %v", margin, holds)
						}
						first.Release()
						return
					}
					if err != nil || c.quick != (waited < testTTL) {
						t.Errorf("after %v: %v", waited, err)
					}
					second.Release()
				})
			})
		}
	}
}
