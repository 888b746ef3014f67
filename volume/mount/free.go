package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// On returns where a device is mounted in this process's mount namespace, the oldest first, whether the device still answers or not.
func On(dev string) (dirs []string, err error) {
	on, err := mounts.On(dev)
	if err != nil {
		return nil, err
	}
	all, err := mounts.Own()
	for _, m := range all {
		if on(m) {
			dirs = append(dirs, m.Dir)
		}
	}
	return dirs, err
}

// Free unmounts a device wherever this process's mount namespace has it, the newest mount first, and calls done with each place. It
// succeeds only if none is left.
func Free(ctx context.Context, dev string, done func(dir string)) error {
	for {
		on, err := mounts.On(dev)
		if err != nil {
			return err
		}
		all, err := mounts.Own()
		if err != nil {
			return err
		}
		i := lastIndex(all, on)
		if i < 0 {
			return nil
		}
		dir := all[i].Dir
		for _, m := range all[i+1:] {
			if m.Dir == dir || strings.HasPrefix(m.Dir, dir+"/") {
				return fmt.Errorf("unmount %s first: it is mounted over %s, or below it", m.Dir, dir)
			}
		}
		if err := unmount(ctx, dir); err != nil {
			return err
		}
		done(dir)
	}
}

func lastIndex(all []mounts.Mount, on func(mounts.Mount) bool) int {
	for i, m := range slices.Backward(all) {
		if on(m) {
			return i
		}
	}
	return -1
}

// unmount takes a mount away. What it was used by a moment ago may take another to be gone: a file that was closed is open in
// every process that is about to start.
func unmount(ctx context.Context, dir string) (err error) {
	mounts.While(ctx, 3*time.Second, func() bool {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		return errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return nil
}
