package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/internal/durable"
)

// A spare is a file that was written to its end, for the next journal. What it holds is an earlier journal's, or zeros: records
// carry the volume and the journal that they belong to, and a journal's id is never used again.
const (
	spareName  = "spare"
	makingName = "spare.making"
	makingStep = 4 << 20 // bytes
)

// spareRest is how many times as long as each write of a spare took its maker rests, so that others have the disk.
const spareRest = 9

// roomLeft reports whether the disk of a directory still has a tenth of itself when n more bytes of it are taken.
func roomLeft(dir string, n int64) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail)*st.Bsize-n >= int64(st.Blocks)*st.Bsize/10, nil
}

// MakeSpare sees to it that the next Create finds a file that is ready, unless the disk is too full for one: then there is to be
// none. It leaves the disk to others for most of the time. Where a rest is not wanted, hurry.
func (d *JournalDir) MakeSpare(ctx context.Context, hurry bool) error {
	made, err := d.checkSpare()
	if made || err != nil {
		return err
	}
	path := filepath.Join(d.dir, makingName)
	need, err := roomWanted(path, d.size)
	ok := false
	if err == nil {
		ok, err = d.room(need)
	}
	if !ok || err != nil {
		return errors.Join(err, d.removeMaking())
	}
	f, err := openJournalFile(path, os.O_CREATE)
	if err != nil {
		return err
	}
	rest := spareRest
	if hurry {
		rest = 0
	}
	err = errors.Join(d.fill(ctx, f, rest), f.Close())
	if err == nil {
		if made, err = d.keepAsSpare(path, true); made || err != nil {
			return err
		}
	}
	return errors.Join(err, os.Remove(path))
}

// roomWanted returns how many bytes of the disk a file of a size lacks, all if it is not there.
func roomWanted(path string, size int64) (int64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return size, nil
	case err != nil:
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return max(0, size-st.Blocks*512), nil
}

// removeMaking removes what was to be a spare, if it is there.
func (d *JournalDir) removeMaking() error {
	if err := os.Remove(filepath.Join(d.dir, makingName)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// fill writes a new file to its end, and syncs it.
func (d *JournalDir) fill(ctx context.Context, f *journalFile, rest int) error {
	if err := d.allocate(f); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := blockdev.AlignedBuffer(makingStep)
	for off := int64(0); off < d.size; off += makingStep {
		began := time.Now()
		if _, err := f.f.WriteAt(zeros[:min(makingStep, d.size-off)], off); err != nil {
			return err
		}
		if err := backoff.Sleep(ctx, time.Duration(rest)*time.Since(began)); err != nil {
			return err
		}
	}
	f.size = d.size
	return f.f.Sync()
}

// allocate takes all the room that a new file needs.
func (d *JournalDir) allocate(f *journalFile) error {
	for {
		err := unix.Fallocate(int(f.f.Fd()), 0, 0, d.size)
		if err == nil {
			f.size = d.size
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// checkSpare reports whether there is nothing to make. A spare that is of another size, or that the disk has no room for, goes. One
// with parts that were never written to is to be made.
func (d *JournalDir) checkSpare() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := filepath.Join(d.dir, spareName)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ok, err := d.room(0)
	if err != nil {
		return true, err
	}
	if !ok || st.Size() != d.size {
		return !ok, os.Remove(path)
	}
	if full, err := isWritten(path, d.size); full || err != nil {
		return true, err
	}
	return false, os.Rename(path, filepath.Join(d.dir, makingName))
}

// isWritten reports whether a file was written to its end. Room that was taken, and not written to, is a hole.
func isWritten(path string, size int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	hole, err := f.Seek(0, unix.SEEK_HOLE)
	return hole == size, err
}

// keepAsSpare makes a file of the right size the spare, unless there is one that it is not to replace, or the disk has no room for it.
func (d *JournalDir) keepAsSpare(path string, replace bool) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st, err := os.Stat(path)
	if err != nil || st.Size() != d.size {
		return false, err
	}
	if ok, err := d.room(0); !ok || err != nil {
		return false, err
	}
	spare := filepath.Join(d.dir, spareName)
	if _, err := os.Stat(spare); !replace && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, errors.Join(os.Rename(path, spare), durable.SyncDir(d.dir))
}

// takeSpare gives the spare another name, and returns it, nil if there is none that can be used: it is removed then. Its superblocks say
// first, on stable storage, that it is no journal yet: under its new name it is never taken for the one that it was.
func (d *JournalDir) takeSpare(path string) *journalFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	spare := filepath.Join(d.dir, spareName)
	f, err := openJournalFile(spare, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = f.becomes(spare, path, d.size); err == nil {
			return f
		}
		f.Close() // nothing of it is wanted
	}
	// Its errors stop nobody, for all that it holds is room. A disk that takes no new file either says so to whoever makes that.
	os.Remove(spare)
	return nil
}

// becomes makes a spare of a size the file of a journal.
func (j *journalFile) becomes(spare, path string, size int64) error {
	if j.size != size {
		return fmt.Errorf("%s has %d bytes", spare, j.size)
	}
	if _, err := j.WriteAt(blockdev.AlignedBuffer(journalRing), 0); err != nil {
		return err
	}
	if err := j.Sync(); err != nil {
		return err
	}
	return os.Rename(spare, path)
}
