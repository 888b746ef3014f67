package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// Close ends everything and takes mounts away. The directory stays.
func (s *Stack) Close() error {
	var errs []error
	if s.containerd != nil {
		errs = append(errs, s.killTasks())
	}
	group := s.HolderGroup()
	errs = append(errs, s.containerd.Stop(syscall.SIGTERM), unmountUnder(filepath.Join(s.Dir, "containerd")))
	errs = append(errs, s.endMounts(), s.remorad.Stop(syscall.SIGTERM), s.KillHolder(), s.registry.Stop(syscall.SIGTERM))
	s.remorad, s.containerd, s.registry = nil, nil, nil
	for _, dir := range []string{s.Root, s.Dir} { // the root may lie elsewhere
		errs = append(errs, dropLoops(dir), unmountUnder(dir))
	}
	return errors.Join(append(errs, s.removeNamespace(), removeGroup(group))...)
}

// dropLoops ends the loop devices on files below a directory that are still there: of disks whose remorad and holder were
// killed and did not come back.
func dropLoops(dir string) error {
	all, err := blockdev.LoopFiles()
	errs := []error{err}
	for _, l := range all {
		if strings.HasPrefix(l.File, dir+"/") {
			if err := blockdev.DropLoop(l.Dev); !errors.Is(err, unix.ENXIO) { // it is going
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// removeGroup removes the control group of a holder that was killed; one that ends by itself does.
func removeGroup(group string) error {
	if group == "" {
		return nil
	}
	for range 1000 {
		err := os.Remove(group)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) { // its process is still on its way out
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s still has processes", group)
}

// unmountUnder takes away what is mounted under a directory, the newest first.
func unmountUnder(dir string) error {
	left, err := MountsUnder(dir)
	errs := []error{err}
	for i := len(left) - 1; i >= 0; i-- {
		errs = append(errs, unix.Unmount(left[i], unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}

// endMounts takes the layers' mounts away, so that the holder ends with remorad.
func (s *Stack) endMounts() error {
	if s.remorad != nil && s.remorad.Running() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := s.Snapctl(ctx, "detach", "--all"); err != nil {
			return err
		}
	}
	return nil
}

// HolderPID returns the process that keeps the root's mounts alive, 0 if there is none.
func (s *Stack) HolderPID() int {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	for _, p := range all {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		if args := strings.Split(string(b), "\x00"); len(args) > 3 && args[1] == "holder" && args[3] == s.Root {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err == nil {
				return pid
			}
		}
	}
	return 0
}

// HolderGroup returns the directory of the control group that the holder has for itself, "" if it
// has none.
func (s *Stack) HolderGroup() string {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.HolderPID()))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(groups)) {
		path, unified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !unified || !strings.Contains(path, "remora-holder-") {
			continue
		}
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			if _, err := os.Stat(mount + path); err == nil {
				return mount + path
			}
		}
	}
	return ""
}

// KillHolder kills the holder and returns when it has ended.
func (s *Stack) KillHolder() error {
	pid := s.HolderPID()
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for s.HolderPID() == pid {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// killTasks ends what tests left running, so that no shim stays.
func (s *Stack) killTasks() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	namespaces, err := s.Ctr(ctx, "namespaces", "ls", "-q")
	if err != nil {
		return err
	}
	for _, ns := range strings.Fields(namespaces) {
		out, err := s.Ctr(ctx, "-n", ns, "tasks", "ls", "-q")
		if err != nil {
			return err
		}
		for _, id := range strings.Fields(out) {
			if _, err := s.Ctr(ctx, "-n", ns, "tasks", "rm", "-f", id); err != nil {
				return err
			}
		}
	}
	return nil
}

// MountsUnder lists the mount points under a directory, oldest first.
func MountsUnder(dir string) ([]string, error) {
	all, err := mounts.Under(dir)
	var dirs []string
	for _, m := range all {
		dirs = append(dirs, m.Dir)
	}
	return dirs, err
}
