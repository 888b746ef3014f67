package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/durable"
)

// DefaultJournal is how large journals are unless something else is asked for, in bytes. A segment store that is out of
// reach fills them; the map of what they hold is in memory.
const DefaultJournal = 1 << 30

const (
	minJournal  = 16 << 20
	mostJournal = 1 << 30 // the segments of a full one must fit into the tail of a head

	journalSuffix = ".journal"
	orphanSuffix  = ".orphan"
)

// JournalDir is Journals as files of a directory. It belongs to one process at a time.
type JournalDir struct {
	dir  string
	size int64
	room func(n int64) (bool, error) // roomLeft, but on the full disks of tests
	mu   sync.Mutex                  // held while the spare comes or goes
}

// NewJournalDir returns the journals in dir, which is made if need be. Those that it makes have size bytes, 0 for
// DefaultJournal.
func NewJournalDir(dir string, size int64) (*JournalDir, error) {
	if size == 0 {
		size = DefaultJournal
	}
	if size < minJournal || size > mostJournal || size%Block != 0 {
		return nil, fmt.Errorf("journals of %d bytes: want %d to %d, in blocks of %d", size, minJournal, mostJournal, Block)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &JournalDir{dir: dir, size: size, room: func(n int64) (bool, error) { return roomLeft(dir, n) }}
	if err := d.removeMaking(); err != nil {
		return nil, err
	}
	return d, nil
}

// Any reports whether there is a journal of any volume.
func (d *JournalDir) Any() (bool, error) {
	entries, err := os.ReadDir(d.dir)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), journalSuffix) }), err
}

func (d *JournalDir) path(vid, id ID) string {
	return filepath.Join(d.dir, fmt.Sprintf("%s-%s", vid, id)+journalSuffix)
}

// journalFile is written past the page cache: what is written is on the disk, or in its cache, and needs no memory.
type journalFile struct {
	f    *os.File
	size int64
}

func openJournalFile(path string, flags int) (*journalFile, error) {
	f, err := os.OpenFile(path, flags|os.O_RDWR|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%s: its file system has no direct I/O, which a journal needs", path)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &journalFile{f, st.Size()}, nil
}

func (j *journalFile) ReadAt(p []byte, off int64) (int, error)  { return j.f.ReadAt(p, off) }
func (j *journalFile) WriteAt(p []byte, off int64) (int, error) { return j.f.WriteAt(p, off) }
func (j *journalFile) Sync() error                              { return unix.Fdatasync(int(j.f.Fd())) }
func (j *journalFile) Size() int64                              { return j.size }
func (j *journalFile) Close() error                             { return j.f.Close() }

// Create implements Journals. It takes the spare if there is one. Another file's room is taken and not written to: until the ring
// has gone round once, each sync costs the file system a change of its own.
func (d *JournalDir) Create(vid, id ID) (_ JournalFile, err error) {
	path := d.path(vid, id)
	f := d.takeSpare(path)
	if f == nil {
		if f, err = openJournalFile(path, os.O_CREATE|os.O_EXCL); err == nil {
			if err = d.allocate(f); errors.Is(err, unix.EOPNOTSUPP) {
				err = d.fill(context.Background(), f, 0)
			}
		}
	}
	if err == nil {
		err = durable.SyncDir(d.dir)
	}
	if err != nil {
		err = fmt.Errorf("journal of %d bytes in %s: %w", d.size, d.dir, err)
		if f != nil {
			err = errors.Join(err, f.Close(), os.Remove(path))
		}
		return nil, err
	}
	return f, nil
}

// Open implements Journals.
func (d *JournalDir) Open(vid, id ID) (JournalFile, error) {
	f, err := openJournalFile(d.path(vid, id), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d.path(vid, id), ErrNoJournal)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Sync returns when stable storage has what was written to any journal of a volume.
func (d *JournalDir) Sync(vid ID) error {
	all, err := filepath.Glob(filepath.Join(d.dir, vid.String()+"-*"+journalSuffix))
	for _, path := range all {
		f, oerr := openJournalFile(path, 0)
		if oerr == nil {
			oerr = errors.Join(f.Sync(), f.Close())
		}
		err = errors.Join(err, oerr)
	}
	return err
}

// Remove implements Journals. The file may become the spare.
func (d *JournalDir) Remove(vid, id ID) error {
	path := d.path(vid, id)
	kept, err := d.keepAsSpare(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if kept || err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return durable.SyncDir(d.dir)
}

// A Stray is the file of a journal.
type Stray struct {
	Volume, ID ID
	File       string
	Orphan     bool // its volume has gone on without it
	Size       int64
	Written    time.Time // when something of it was written last
}

// All returns every journal that there is.
func (d *JournalDir) All() (all []Stray, err error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, orphan := strings.CutSuffix(e.Name(), orphanSuffix)
		name, journal := strings.CutSuffix(name, journalSuffix)
		vid, id, ok := strings.Cut(name, "-")
		if !ok || orphan == journal {
			continue
		}
		s := Stray{File: filepath.Join(d.dir, e.Name()), Orphan: orphan}
		if s.Volume, err = ParseID(vid); err != nil {
			continue
		}
		if s.ID, err = ParseID(id); err != nil {
			continue
		}
		st, err := os.Stat(s.File)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		s.Size, s.Written = st.Size(), st.ModTime()
		all = append(all, s)
	}
	return all, nil
}

// OpenStray opens a journal to read it.
func (d *JournalDir) OpenStray(s Stray) (JournalFile, error) { return openJournalFile(s.File, 0) }

// RemoveStray removes a journal that nobody uses.
func (d *JournalDir) RemoveStray(s Stray) error {
	return errors.Join(os.Remove(s.File), durable.SyncDir(d.dir))
}

// Orphan implements Journals. One that holds nothing, as an Attach leaves that was given up, is removed.
func (d *JournalDir) Orphan(vid, except ID) error {
	all, err := filepath.Glob(filepath.Join(d.dir, vid.String()+"-*"+journalSuffix))
	if err != nil {
		return err
	}
	for _, path := range all {
		if path == d.path(vid, except) {
			continue
		}
		empty, err := isEmptyJournal(path, vid)
		switch {
		case err != nil:
		case empty:
			err = os.Remove(path)
		default:
			err = os.Rename(path, strings.TrimSuffix(path, journalSuffix)+orphanSuffix)
		}
		if err != nil {
			return err
		}
	}
	return durable.SyncDir(d.dir)
}

// isEmptyJournal reports whether a journal holds no record. One that is damaged is not empty.
func isEmptyJournal(path string, vid ID) (bool, error) {
	id, err := ParseID(strings.TrimPrefix(strings.TrimSuffix(filepath.Base(path), journalSuffix), vid.String()+"-"))
	if err != nil {
		return false, nil
	}
	f, err := openJournalFile(path, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	p := blockdev.AlignedBuffer(journalRing)
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
		return true, nil // its Create did not end
	}
	records := 0
	_, err = replay(f, vid, id, nil, true, func(uint64, []entry, cursor) { records++ })
	return err == nil && records == 0, nil
}

// RemoveAll removes every journal of a volume, orphans too: the volume is gone.
func (d *JournalDir) RemoveAll(vid ID) error {
	all, err := filepath.Glob(filepath.Join(d.dir, vid.String()+"-*"))
	if err != nil || len(all) == 0 {
		return err
	}
	for _, path := range all {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return durable.SyncDir(d.dir)
}
