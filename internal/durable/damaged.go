package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Kind of small file says what is lost with a damaged one.
type Kind struct {
	Name string // of the file, a pattern as path/filepath's Match has it
	Lost string // what is lost with its content
	Do   string // what the operator does about it
}

// A Damage is a damaged file that was set aside.
type Damage struct {
	File  string    // where it was
	Aside string    // where it lies
	When  time.Time // when it was set aside, to the second
	Kind  Kind
}

// Found says how a file was found.
type Found int

// How files are found.
const (
	Whole   Found = iota
	Absent        // there is none
	Damaged       // its content is lost, and it was set aside
)

// ErrNewer says that a file is whole, and made by a later release. It is never set aside.
var ErrNewer = errors.New("it was written by a later release: run that one, or remove the file and what it says is lost")

// CheckVersion fails unless a file has the version that this release knows, by ErrNewer if it has a later one.
func CheckVersion(has, known int) error {
	switch {
	case has > known:
		return fmt.Errorf("version %d, this remorad knows %d: %w", has, known, ErrNewer)
	case has != known:
		return fmt.Errorf("it has version %d", has)
	}
	return nil
}

// ErrDamaged says that what is in a file's place cannot be what was saved.
var ErrDamaged = errors.New("damaged")

const (
	asideMark = ".damaged-"
	asideTime = "20060102T150405Z"
	// maxRecord is how many bytes of a file are read at most. Those that are written here have a few thousand.
	maxRecord = 32 << 20
)

// LoadJSON reads the file at path, an object in JSON. check says whether the value can be what was saved; it may be nil. A
// damaged file is set aside, with a message in the log, and the value is the zero one then, as it is where there is no file.
// The error is one of check that wraps ErrNewer, or says that the file could not be read, or not be set aside though damaged.
// A file that could not be read stays where it is: only what was read and is not valid is damage.
func LoadJSON[T any](path string, k Kind, log *slog.Logger, check func(*T) error) (T, Found, error) {
	var v, none T
	found, err := Load(path, k, log, func(p []byte) error {
		if err := decode(p, &v); err != nil || check == nil {
			return err
		}
		return check(&v)
	})
	if found != Whole || err != nil {
		return none, found, err
	}
	return v, Whole, nil
}

// Load is LoadJSON of a file that is not JSON: use says whether its content can be what was saved.
func Load(path string, k Kind, log *slog.Logger, use func(p []byte) error) (Found, error) {
	p, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Absent, nil
	case err != nil && !errors.Is(err, ErrDamaged):
		return Whole, err // it may be read the next time
	case err == nil:
		err = use(p)
	}
	switch {
	case err == nil:
		return Whole, nil
	case errors.Is(err, ErrNewer):
		return Whole, fmt.Errorf("%s: %w", path, err)
	}
	return Damaged, SetAside(path, k, log, err)
}

// read returns the content of a regular file that is not too large to be one of ours.
func read(path string) ([]byte, error) {
	f, st, err := OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	if st.Size() > maxRecord {
		return nil, fmt.Errorf("%w: it has %d bytes, where at most %d are read", ErrDamaged, st.Size(), maxRecord)
	}
	return io.ReadAll(io.LimitReader(f, maxRecord)) // an *fs.PathError, which names the file
}

// OpenRegular opens a file for reading. An error wraps fs.ErrNotExist if there is none, and ErrDamaged if what is there is no
// regular file, or a link to nothing. All others may pass, and say nothing of the file's content.
func OpenRegular(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would wait for a writer
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, lerr := os.Lstat(path); lerr == nil {
			return nil, nil, fmt.Errorf("%w: it is a link to nothing", ErrDamaged)
		}
		return nil, nil, err
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO): // links in a circle, through a file; a socket
		return nil, nil, fmt.Errorf("%w: it is no regular file: %w", ErrDamaged, err)
	case err != nil:
		return nil, nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: it is no regular file: %v", ErrDamaged, st.Mode())
	}
	if err != nil {
		f.Close() // only read
		return nil, nil, err
	}
	return f, st, nil
}

// decode insists on an object: null, which json takes for anything, is none.
func decode(p []byte, v any) error {
	if len(p) == 0 {
		return errors.New("it is empty")
	}
	if !bytes.HasPrefix(bytes.TrimLeft(p, " \t\r\n"), []byte("{")) {
		return errors.New("it is no object in JSON")
	}
	return json.Unmarshal(p, v)
}

// SetAside gives a damaged file, or what is in its place, a name under which nobody reads it, and says so in the log. The
// operator removes it. why is what is wrong with it.
func SetAside(path string, k Kind, log *slog.Logger, why error) error {
	aside, err := asideName(path)
	if err == nil {
		err = rename(path, aside)
	}
	if err != nil {
		return fmt.Errorf("%s is damaged (%w) and cannot be set aside: %w", path, why, err)
	}
	log.Error("a damaged file was set aside", "file", path, "aside", aside, "err", why, "lost", k.Lost, "do", k.Do)
	return nil
}

// Miss notes that a file that must be there is not, in a file beside its place as SetAside leaves one; once, until the
// operator removes that.
func Miss(path string, k Kind, log *slog.Logger, why string) error {
	noted, err := asideOf(filepath.Dir(path), filepath.Base(path))
	if err != nil || len(noted) > 0 {
		return err
	}
	aside, err := asideName(path)
	if err == nil {
		err = Replace(aside, []byte(filepath.Base(path)+" was not there: "+why+"\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("%s is missing (%s), which cannot be noted: %w", path, why, err)
	}
	log.Error("a file is missing", "file", path, "noted", aside, "err", why, "lost", k.Lost, "do", k.Do)
	return nil
}

func asideName(path string) (string, error) {
	now := path + asideMark + time.Now().UTC().Format(asideTime)
	aside := now
	for n := 2; ; n++ {
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			return aside, nil
		} else if err != nil {
			return "", err
		}
		aside = fmt.Sprintf("%s-%d", now, n)
	}
}

// ListDamaged returns what was set aside in a directory, which need not exist, by name. Files of none of these kinds are
// not ours.
func ListDamaged(dir string, kinds ...Kind) ([]Damage, error) {
	var all []Damage
	for _, k := range kinds {
		some, err := asideOf(dir, k.Name)
		if err != nil {
			return nil, err
		}
		for _, d := range some {
			d.Kind = k
			all = append(all, d)
		}
	}
	return all, nil
}

// asideOf returns what was set aside in a directory of files whose names match a pattern.
func asideOf(dir, pattern string) ([]Damage, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, err
	}
	var all []Damage
	for _, e := range entries {
		i := strings.LastIndex(e.Name(), asideMark)
		if i < 0 {
			continue
		}
		name := e.Name()[:i]
		if ok, err := filepath.Match(pattern, name); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		stamp, _, _ := strings.Cut(e.Name()[i+len(asideMark):], "-")
		when, err := time.Parse(asideTime, stamp)
		if err != nil {
			continue // somebody else's
		}
		all = append(all, Damage{File: filepath.Join(dir, name), Aside: filepath.Join(dir, e.Name()), When: when})
	}
	return all, nil
}
