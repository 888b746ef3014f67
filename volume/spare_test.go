package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSpareKeepsNoRecord: a journal in a file that was another one's, of the same volume, has its own records alone: at whatever place
// its last one ends, and whether or not a power cut came before. The other one's were all valid, and say that they were synced.
func TestSpareKeepsNoRecord(t *testing.T) {
	t.Parallel()
	vid := NewID()
	disk := &cutDisk{now: make([]byte, journalRing+minRing)}
	// fill writes records of one block, as many as there is room for or n, and returns how many there are.
	fill := func(id ID, n int) (records int) {
		if err := formatJournal(disk, vid, id); err != nil {
			t.Fatal(err)
		}
		super, err := openSuperblock(disk, vid, id)
		if err != nil {
			t.Fatal(err)
		}
		j := newJournal(disk, super, super.start, super.start, 0, 1, 0)
		j.written, j.full = func(uint64, []entry, cursor) {}, func() {}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { j.run(ctx); close(ended) }()
		defer func() { stop(); <-ended }()
		for ; records < n && int64(records+1)*2*Block <= minRing; records++ {
			err := j.append(ctx, &appendReq{entries: []entry{{lba: uint64(records), blocks: 1, data: bytes.Repeat(id[:], Block/len(id))}}})
			if err = errors.Join(err, j.sync()); err != nil {
				t.Fatal(err)
			}
		}
		return records
	}
	all := fill(NewID(), 1<<20)
	if all < 100 {
		t.Fatalf("only %d records", all)
	}
	for _, n := range []int{0, 1, 2, all / 2, all - 1, all} {
		id := NewID()
		want := fill(id, n)
		for _, sameBoot := range []bool{false, true} {
			got := 0
			_, err := replay(disk, vid, id, nil, sameBoot, func(_ uint64, entries []entry, _ cursor) {
				if !bytes.Equal(entries[0].data[:len(id)], id[:]) {
					t.Errorf("record %d of %d is another journal's", got, want)
				}
				got++
			})
			if err != nil || got != want {
				t.Errorf("same boot %v: %d records of %d were read: %v", sameBoot, got, want, err)
			}
		}
	}
}

// TestSpare: a journal that was let go is the next one, without its records; one that a crash has left between two names is nobody's;
// one of another size goes, and so does what a maker has left that was killed.
func TestSpare(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if ok, err := roomLeft(dir, 2*minJournal); err != nil || !ok {
		t.Skipf("the disk below %s is too full for spares (%v)", dir, err)
	}
	d, err := NewJournalDir(dir, minJournal)
	if err != nil {
		t.Fatal(err)
	}
	inode := func(name string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	create := func(vid, id ID) {
		f, err := d.Create(vid, id)
		if err != nil {
			t.Fatal(err)
		}
		if f.Size() != minJournal {
			t.Errorf("a journal of %d bytes", f.Size())
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	vid, first, second, third := NewID(), NewID(), NewID(), NewID()
	create(vid, first)
	was := inode(filepath.Base(d.path(vid, first)))
	if err := d.Remove(vid, first); err != nil {
		t.Fatal(err)
	}
	create(vid, second)
	if is := inode(filepath.Base(d.path(vid, second))); is != was {
		t.Error("the second journal is another file")
	}
	if any, err := d.Any(); err != nil || !any {
		t.Errorf("the journal is not seen: %v", err)
	}
	if err := d.Orphan(vid, third); err != nil { // killed before it was formatted
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 1 || len(left) == 1 && left[0].Name() != spareName {
		t.Errorf("%v is left of a journal that never was (%v)", left, err)
	}
	if err := d.MakeSpare(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if full, err := isWritten(filepath.Join(dir, spareName), minJournal); err != nil || !full {
		t.Errorf("the spare is not written to its end (%v)", err)
	}
	made := inode(spareName)
	if any, err := d.Any(); err != nil || any {
		t.Errorf("a spare passes for a journal: %v", err)
	}
	create(vid, third)
	if is := inode(filepath.Base(d.path(vid, third))); is != made {
		t.Error("the spare was not used")
	}
	create(vid, second) // there is none: this one is not written to
	if err := d.Remove(vid, second); err != nil {
		t.Fatal(err)
	}
	if full, err := isWritten(filepath.Join(dir, spareName), minJournal); err != nil || full {
		t.Errorf("a journal without a spare is written to its end (%v)", err)
	}
	if err := d.MakeSpare(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, makingName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err = NewJournalDir(dir, 2*minJournal); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, makingName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a half-made spare stays: %v", err)
	}
	f, err := d.Create(vid, NewID())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Size() != 2*minJournal {
		t.Errorf("a journal of %d bytes", f.Size())
	}
	if _, err := os.Stat(filepath.Join(dir, spareName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a spare of another size stays: %v", err)
	}
}

// TestSpareOnFullDisk: a journal that was let go is written round in its own room, on a disk that has none for another one. Where even
// that is wanted by others meanwhile, it goes.
func TestSpareOnFullDisk(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		looks  int // after which the disk is full
		remain bool
	}{
		{"room for one", 100, true},
		{"room for none by then", 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d, err := NewJournalDir(dir, minJournal)
			if err != nil {
				t.Fatal(err)
			}
			looks := 0
			d.room = func(n int64) (bool, error) {
				entries, err := os.ReadDir(dir)
				for _, e := range entries {
					var st unix.Stat_t
					err = errors.Join(err, unix.Stat(filepath.Join(dir, e.Name()), &st))
					n += st.Blocks * 512
				}
				looks++
				return looks <= c.looks && n <= minJournal*3/2, err
			}
			vid, id := NewID(), NewID()
			f, err := d.Create(vid, id)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Close(), d.Remove(vid, id), d.MakeSpare(t.Context(), true)); err != nil {
				t.Fatal(err)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) > 1 || len(left) == 1 && left[0].Name() != spareName {
				t.Errorf("%v is there, not a spare (%v)", left, err)
			}
			if !c.remain {
				if len(left) > 0 && looks > c.looks {
					t.Errorf("%v is left on a disk without room", left)
				}
				return
			}
			if full, err := isWritten(filepath.Join(dir, spareName), minJournal); err != nil || !full {
				t.Errorf("the spare is not written to its end (%v)", err)
			}
		})
	}
}

// TestSpareDamaged: a spare that cannot be used keeps nobody from having a journal, and goes.
func TestSpareDamaged(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, spare string) error{
		"cannot be opened": func(_ *testing.T, spare string) error { return os.Mkdir(spare, 0o700) },
		"cannot be written": func(t *testing.T, spare string) error {
			fd, err := unix.MemfdCreate("spare", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), "spare")
			t.Cleanup(func() { f.Close() })
			if err := f.Truncate(minJournal); err != nil {
				return err
			}
			if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
				return err
			}
			return os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), spare)
		},
		"has another size": func(_ *testing.T, spare string) error { return os.WriteFile(spare, make([]byte, Block), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d, err := NewJournalDir(dir, minJournal)
			if err != nil {
				t.Fatal(err)
			}
			spare := filepath.Join(dir, spareName)
			if err := damage(t, spare); err != nil {
				t.Fatal(err)
			}
			f, err := d.Create(NewID(), NewID())
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if f.Size() != minJournal {
				t.Errorf("a journal of %d bytes", f.Size())
			}
			if _, err := os.Lstat(spare); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the damaged spare stays: %v", err)
			}
		})
	}
}
