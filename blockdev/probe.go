package blockdev

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// A Backend is a way in which the kernel mounts an incomplete image.
type Backend string

// The back ends, best first.
const (
	FuseFile Backend = "fuse-file" // EROFS on a FUSE-served file
	FuseLoop Backend = "fuse-loop" // EROFS on a loop device on a FUSE-served file
)

// Capabilities say what this kernel and the cache's file system can do. They were found by
// doing it.
type Capabilities struct {
	Lazy       Backend // for incomplete images; "" if there is no way
	LazyReason string  // why that one, in words
	Direct     bool    // EROFS on a complete image file itself; by a loop device otherwise
	Reason     string  // why not Direct
}

// Probe mounts a tiny EROFS image in every way that an image may be mounted. dir must lie where
// images will lie; pinned, if not "", is the only way to try for incomplete images.
func Probe(dir string, image []byte, pinned Backend, log *slog.Logger) (Capabilities, error) {
	work, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return Capabilities{}, err
	}
	defer os.RemoveAll(work)
	file, on, served := filepath.Join(work, "image"), filepath.Join(work, "on"), filepath.Join(work, "fuse")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		return Capabilities{}, err
	}
	for _, d := range []string{on, served} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return Capabilities{}, err
		}
	}
	var c Capabilities
	if err := tryMount(func() error { return MountEROFS(file, on) }, on); err == nil {
		c.Direct = true
	} else {
		c.Reason = err.Error()
	}
	files, err := ServeFiles(served, log)
	if err != nil {
		c.LazyReason = err.Error()
		return c, nil
	}
	defer func() { err = files.Close() }()
	path, err := files.Export(bytesDevice(image))
	if err != nil {
		return c, err
	}
	ways := map[Backend]func() error{
		FuseFile: func() error { return MountEROFS(path, on) },
		FuseLoop: func() error { return MountLoop(path, on) },
	}
	for _, b := range []Backend{FuseFile, FuseLoop} {
		if pinned != "" && b != pinned {
			continue
		}
		began := time.Now()
		if err := tryMount(ways[b], on); err != nil {
			c.LazyReason += fmt.Sprintf("%s: %v; ", b, err)
			continue
		}
		c.Lazy = b
		c.LazyReason += fmt.Sprintf("%s: mounted and read in %s", b, time.Since(began).Round(time.Microsecond))
		if pinned != "" {
			c.LazyReason += ", pinned by the configuration"
		}
		return c, nil
	}
	return c, nil
}

// ProbeName is the directory that a probe's image holds.
const ProbeName = "probe"

func tryMount(mount func() error, on string) error {
	if err := mount(); err != nil {
		return err
	}
	defer Unmount(on) // its directory is removed with the probe's, or the error shows there
	st, err := os.Lstat(filepath.Join(on, ProbeName))
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("the image mounted on %s is not the probe's", on)
	}
	return nil
}

// MountLoop mounts an image by a loop device.
func MountLoop(source, dir string) error {
	l, err := AttachLoop(source)
	if err != nil {
		return err
	}
	defer l.Release() // the mount holds the device now
	return MountEROFS(l.Path(), dir)
}
