package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/openers"
)

// A Volume is one that is attached, and stays so while something is done with it here.
type Volume struct {
	Name, Device string
	ReadOnly     bool
	Sector       int    // bytes of the device's sectors
	Fresh        bool   // nobody has ever written to it
	FS           string // the file system that its head says it has: what Note wrote last
	// Note writes into the volume's head which file system it has, or that one is being made.
	Note func(ctx context.Context, fs string) error `json:"-"`
	// Store returns when the volume's store has everything that was written.
	Store func(ctx context.Context) error `json:"-"`
}

// making comes before the kind of a file system, in a head, until it is made and stored.
const making = "making "

// HalfMade returns the kind of a file system that was not made to its end, by what a head says; "" if none was.
func HalfMade(fs string) (kind string) {
	kind, half := strings.CutPrefix(fs, making)
	if !half {
		return ""
	}
	return kind
}

// A Place is where a volume is to be mounted, and how.
type Place struct {
	Dir     string // an absolute path; it is made if need be
	FS      string // of a new volume; "" for the default
	Options string // as for mount(8)
}

// Bring mounts a volume's file system, and makes one before where that was never done. One that is mounted there stays as it is. say is
// told what takes a while.
func Bring(ctx context.Context, v Volume, p Place, say func(string)) error {
	if is, err := v.isAt(p.Dir); is || err != nil {
		return err
	}
	stays := v.ReadOnly || ReadOnly(p.Options)
	kind, err := Prepare(ctx, v, p.FS, stays, say)
	if err != nil {
		return err
	}
	if is, err := v.isAt(p.Dir); is || err != nil { // one whose remorad was killed was about to mount it
		return err
	}
	if err := makeDir(p.Dir); err != nil {
		return err
	}
	if err := Mount(kind, v.Device, p.Dir, p.Options, v.ReadOnly); err != nil {
		return err
	}
	if kind == Default || stays { // an ext4 has grown before
		return nil
	}
	if err := Grow(kind, v.Device, p.Dir); err != nil {
		return fmt.Errorf("%s is mounted on %s, but has not grown: %w", v.Name, p.Dir, err)
	}
	return nil
}

// isAt reports whether a volume is mounted on a directory. It is an error if it is mounted elsewhere.
func (v Volume) isAt(dir string) (bool, error) {
	where, err := On(v.Device)
	if err != nil || len(where) == 0 {
		return false, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil && slices.Contains(where, real) {
		return true, nil
	}
	return false, fmt.Errorf("%s is mounted on %s", v.Name, strings.Join(where, ", "))
}

// makeDir makes a directory, and those that lead to it, as others are made: whatever this process's umask is.
func makeDir(dir string) error {
	if parent := filepath.Dir(dir); parent != dir {
		if _, err := os.Stat(parent); errors.Is(err, os.ErrNotExist) {
			if err := makeDir(parent); err != nil {
				return err
			}
		}
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil // whatever it is: mounting on it says
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// Prepare makes sure that a volume has a file system that can be mounted, and returns its kind. One that nobody has ever written to
// gets one, of the kind that is wanted or the default, and so does one on which that was begun and not ended. No other does, ever: where
// it was begun, and there is what nobody leaves who is stopped in the midst of it, somebody may have made that by hand, and it is made
// again only if a kind is wanted. stays says that a file system which is there is not to be changed. What changes the device runs to its
// end, though ctx ends; one that somebody else changes meanwhile is in use. say is told what takes a while.
func Prepare(ctx context.Context, v Volume, want string, stays bool, say func(string)) (kind string, err error) {
	mounted, err := waitUnused(ctx, v.Device, HalfMade(v.FS) != "", say)
	if err != nil {
		return "", err
	}
	has, size, err := ProbeDevice(v.Device)
	begun := HalfMade(v.FS)
	if mounted || has.Used {
		begun = "" // somebody has found a file system there
	}
	switch {
	case err != nil && (begun == "" || !errors.Is(err, ErrAmbiguous)):
		return "", err
	case begun != "" && v.ReadOnly:
		return "", unfinished{fmt.Errorf("%s is read-only, and its file system was not made to the end", v.Name)}
	case begun != "" && want == "" && err != nil:
		return "", unfinished{fmt.Errorf("%w; --fs %s makes a file system over all of them", err, begun)}
	case begun != "" && want == "" && !has.remnant(begun):
		return "", unfinished{fmt.Errorf("%s holds %s, though its head says that %s was not made to its end: to keep what is there, "+
			"mount %s yourself and attach the volume once more; --fs %s makes a file system over it", v.Name, has, begun, v.Device, begun)}
	case begun != "":
		return v.format(ctx, cmp.Or(want, begun), true, say)
	case has.Kind != "" && !Known(has.Kind):
		return "", fmt.Errorf("%s holds %s, not a file system that can be mounted", v.Name, has)
	case has.Kind == "" && (!v.Fresh || mounted):
		return "", fmt.Errorf("%s has been written to, and no file system is known on it; make one on %s yourself if its content is of no use",
			v.Name, v.Device)
	case has.Kind != "" && want != "" && has.Kind != want:
		return "", fmt.Errorf("%s holds %s, not %s", v.Name, has, want)
	case has.Kind == "":
		return v.format(ctx, cmp.Or(want, Default), false, say)
	case has.Sector > 0 && has.Sector < v.Sector:
		return "", fmt.Errorf("%s holds an xfs with sectors of %d bytes, and the device has %d: mount a device with such sectors on it "+
			"(losetup --sector-size %d -f --show %s), or copy the files into a new volume", v.Name, has.Sector, v.Sector, has.Sector, v.Device)
	}
	if v.FS != has.Kind && !v.ReadOnly {
		if err := v.Note(ctx, has.Kind); err != nil {
			return "", err
		}
	}
	if mounted || stays || v.ReadOnly {
		return has.Kind, nil
	}
	return has.Kind, Ready(v.Device, has, size, say)
}

// unfinished says why a file system that was not made to its end is left as it is.
type unfinished struct{ error }

func (u unfinished) Unwrap() error { return u.error }

// format makes a file system. Until the volume's store has all of it, the head says that it is being made: whoever mounts the volume
// then, on whatever node, makes it again.
func (v Volume) format(ctx context.Context, kind string, again bool, say func(string)) (string, error) {
	if err := canMake(kind); err != nil {
		return "", err // before the head says that it was begun
	}
	if v.FS != making+kind {
		if err := v.Note(ctx, making+kind); err != nil {
			return "", err
		}
	}
	say("making a file system: " + kind)
	if err := Make(kind, v.Device, again); err != nil {
		return "", err
	}
	if err := v.Store(ctx); err != nil {
		return "", err
	}
	return kind, v.Note(ctx, kind)
}

// waitUnused waits until nobody has a device open exclusively, as what makes, checks and grows file systems does: not for long, unless
// that is what an earlier process has begun. A file system that is mounted, in whatever namespace, can be mounted again, and must not be
// changed.
func waitUnused(ctx context.Context, dev string, begun bool, say func(string)) (mounted bool, err error) {
	maker := ""
	busy := func() bool {
		var f *os.File
		if f, err = os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0); err == nil {
			err = f.Close()
		}
		mounted = false
		if errors.Is(err, unix.EBUSY) {
			is, merr := mountedAnywhere(dev)
			mounted = is && merr == nil
		}
		if !errors.Is(err, unix.EBUSY) || mounted {
			return false
		}
		if by := users(dev); begun && maker == "" && strings.Contains(by, "(mkfs.") {
			maker = by
			say("waiting for " + by)
		}
		return true
	}
	for mounts.While(ctx, mounts.Passing, busy); maker != "" && busy() && ctx.Err() == nil; {
		maker = ""
		mounts.While(ctx, mounts.Passing, busy)
	}
	switch {
	case mounted:
		return true, nil
	case !errors.Is(err, unix.EBUSY):
		return false, err
	}
	if by := users(dev); by != "" {
		return false, fmt.Errorf("%s is in use by %s", dev, by)
	}
	return false, fmt.Errorf("%s is in use", dev)
}

// users names who has a device open, "" for nobody that can be seen.
func users(dev string) string {
	by, err := openers.Of(dev)
	if err != nil || by.None() {
		return ""
	}
	return by.String()
}

// mountedAnywhere reports whether a device is mounted in some mount namespace.
func mountedAnywhere(dev string) (is bool, err error) {
	on, err := mounts.On(dev)
	if err == nil {
		err = mounts.Everywhere(func(_ mounts.Namespace, m mounts.Mount) { is = is || on(m) })
	}
	return is, err
}
