package durable

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Replace replaces the content of the file at path, as Create and Commit do.
func Replace(path string, content []byte, mode fs.FileMode) (err error) {
	f, err := Create(path, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Commit()
}

// SaveJSON replaces the content of the file at path by v in JSON. A new file is its owner's alone.
func SaveJSON(path string, v any) error {
	p, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return Replace(path, p, 0o600)
}

// Rename gives a file the caller has written the name to, in the same directory. It returns when both content and name are on
// stable storage.
func Rename(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return rename(from, to)
}

func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// SyncDir returns when the names in a directory are on stable storage.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // nothing was written through it
	if err := d.Sync(); !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil // this file system has no way to sync a directory
}
