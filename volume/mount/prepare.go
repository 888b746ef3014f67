package mount

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/openers"
)

// A Volume is one that is attached, and is to be mounted.
type Volume struct {
	Name, Device string
	ReadOnly     bool
	Fresh        bool // nobody has ever written to it
}

// Prepare makes sure that a volume has a file system that can be mounted, and returns its kind. One that nobody has ever written to
// gets one, of the kind that is wanted or the default; no other does, ever. What changes the device runs to its end, though ctx ends;
// one that somebody else changes meanwhile is in use. say is told what takes a while.
func Prepare(ctx context.Context, v Volume, want string, say func(string)) (kind string, err error) {
	mounted, err := waitUnused(ctx, v.Device)
	if err != nil {
		return "", err
	}
	has, size, err := ProbeDevice(v.Device)
	switch {
	case err != nil:
		return "", err
	case has.Kind != "" && !Known(has.Kind):
		return "", fmt.Errorf("%s holds %s, not a file system that can be mounted", v.Name, has)
	case has.Kind == "" && (!v.Fresh || mounted):
		return "", fmt.Errorf("%s has been written to, and no file system is known on it; make one on %s yourself if its content is of no use",
			v.Name, v.Device)
	case has.Kind != "" && want != "" && has.Kind != want:
		return "", fmt.Errorf("%s holds %s, not %s", v.Name, has, want)
	case has.Kind == "":
		if kind = want; kind == "" {
			kind = Default
		}
		say("making a file system: " + kind)
		return kind, Make(kind, v.Device)
	case v.ReadOnly || mounted:
		return has.Kind, nil
	}
	return has.Kind, Ready(v.Device, has, size, say)
}

// waitUnused waits until nobody has a device open exclusively, as what makes, checks and grows file systems does, but not for long. A file
// system that is mounted, in whatever namespace, can be mounted again, and must not be changed.
func waitUnused(ctx context.Context, dev string) (mounted bool, err error) {
	mounts.While(ctx, mounts.Passing, func() bool {
		var f *os.File
		if f, err = os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0); err == nil {
			err = f.Close()
		}
		mounted = errors.Is(err, unix.EBUSY) && mountedAnywhere(dev)
		return errors.Is(err, unix.EBUSY) && !mounted
	})
	switch {
	case mounted:
		return true, nil
	case !errors.Is(err, unix.EBUSY):
		return false, err
	}
	if by, oerr := openers.Of(dev); oerr == nil && !by.None() {
		return false, fmt.Errorf("%s is in use by %s", dev, by)
	}
	return false, fmt.Errorf("%s is in use", dev)
}

func mountedAnywhere(dev string) (is bool) {
	on, err := mounts.On(dev)
	if err == nil {
		err = mounts.Everywhere(func(_ mounts.Namespace, m mounts.Mount) { is = is || on(m) })
	}
	return is && err == nil
}
