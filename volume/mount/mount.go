package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// noRecovery has the options by which a file system is mounted as it is, though its log could be replayed: that would write.
var noRecovery = map[string]string{"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}

// Mount mounts a device's file system on a directory. Options are as for mount(8); nodev and nosuid come before them. A device that is
// read-only is not written to, not even to replay a log. The error names the option that it was for.
func Mount(kind, dev, dir, asked string, readOnly bool) error {
	o, err := parse(asked, readOnly)
	if err == nil && readOnly && noRecovery[kind] != "" {
		o.super = append(o.super, noRecovery[kind])
	}
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err == nil {
		err = o.mount(kind, dev, dir)
	}
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", dev, dir, err)
	}
	return nil
}

func (o options) mount(kind, dev, dir string) error {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%s: %w (has the kernel this file system?)", kind, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", dev); err != nil {
		return told(fs, err)
	}
	for _, opt := range o.super {
		name, value, has := strings.Cut(opt, "=")
		if has {
			err = unix.FsconfigSetString(fs, name, value)
		} else {
			err = unix.FsconfigSetFlag(fs, name)
		}
		if err != nil {
			return fmt.Errorf("mount option %q: %w", opt, told(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		err = told(fs, err)
		if errors.Is(err, unix.EINVAL) && len(o.super) > 0 {
			err = fmt.Errorf("%w (mount options %s; the kernel's log may say more)", err, strings.Join(o.super, ","))
		}
		return err
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, o.attrs)
	if err != nil {
		return told(fs, err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	for _, p := range o.propagation {
		if err := unix.Mount("", dir, "", p, ""); err != nil {
			return errors.Join(os.NewSyscallError("mount", err), unix.Unmount(dir, 0))
		}
	}
	return nil
}

// told adds to an error what the kernel says about it.
func told(fs int, err error) error {
	var says []string
	for p := make([]byte, 4096); ; {
		n, rerr := unix.Read(fs, p) // one message each time, ENODATA after the last
		if rerr != nil || n < 2 {
			break
		}
		says = append(says, strings.TrimSpace(string(p[2:n]))) // behind "e ", "w " or "i "
	}
	if len(says) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(says, "; "))
}
