package volume

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// TestOrphan: a journal that holds something is kept when the volume goes on without it, one that holds nothing is not.
func TestOrphan(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := NewJournalDir(dir, minJournal)
	if err != nil {
		t.Fatal(err)
	}
	vid, unformatted, empty, full, current := NewID(), NewID(), NewID(), NewID(), NewID()
	for _, id := range []ID{unformatted, empty, full, current} {
		f, err := d.Create(vid, id)
		if err != nil {
			t.Fatal(err)
		}
		if id != unformatted {
			if err := formatJournal(f, vid, id); err != nil {
				t.Fatal(err)
			}
		}
		if id == full {
			super, err := openSuperblock(f, vid, id)
			if err != nil {
				t.Fatal(err)
			}
			j := newJournal(f, super, super.start, super.start, 0, 1, 1<<20)
			j.written, j.full = func(uint64, []entry, cursor) {}, func() {}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { j.run(ctx); close(ended) }()
			if err := j.append(ctx, &appendReq{entries: []entry{{blocks: 1, data: bytes.Repeat([]byte{1}, Block)}}}); err != nil {
				t.Error(err)
			}
			stop()
			<-ended
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Orphan(vid, current); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{filepath.Base(d.path(vid, current)): true, vid.String() + "-" + full.String() + orphanSuffix: true}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.Name()] {
			t.Errorf("%s is there", e.Name())
		}
		delete(want, e.Name())
	}
	for name := range want {
		t.Errorf("%s is not there", name)
	}
	if err := d.RemoveAll(vid); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%d journals of a volume that is gone (%v)", len(entries), err)
	}
}
