package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Detach takes every layer's mount away and ends what the mounts depend on. It is refused while
// anything goes on using one: the error names the containers. What is pulled stays pulled; the next start
// of a container mounts its layers again.
func (s *Snapshotter) Detach() (layers int, err error) {
	users, err := lasting(s.root, mountUsers)
	if err != nil {
		return 0, err
	}
	if len(users) > 0 {
		return 0, fmt.Errorf("layers are in use; stop first: %s", strings.Join(users, ", "))
	}
	for _, b := range s.allBindings() {
		n, err := s.detachOne(b)
		layers += n
		if err != nil {
			return layers, err
		}
	}
	// Unmounted here, an image may still be mounted in a mount namespace that has a copy. If the
	// kernel asks us for what it misses, we must not go.
	if left, err := lasting(s.root, imageUsers); err != nil || len(left) > 0 {
		return layers, errors.Join(err, fmt.Errorf("image files are still mounted in other mount namespaces: %s", strings.Join(left, ", ")))
	}
	s.log.Info("all layers detached", "layers", layers)
	return layers, s.exports.end()
}

// detachOne unmounts a binding's layer unless that is in use.
func (s *Snapshotter) detachOne(b *binding) (int, error) {
	b.mu.Lock()
	a := b.attempt
	b.mu.Unlock()
	if a != nil {
		<-a.done
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how == notMounted {
		return 0, nil
	}
	if err := unmountAll(b.fsDir()); err != nil {
		return 0, fmt.Errorf("%s is in use by something that is not a container (try fuser -vm %s): %w", describe(&b.saved.Source), b.fsDir(), err)
	}
	return 1, s.unmountLocked(b)
}

// unmountAll takes away everything that is mounted on a directory and not in use.
func unmountAll(dir string) error {
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// passing is for how long a mount may be seen that is on its way out: a container that starts, of whatever snapshotter, has
// a copy of every mount of the node until it has left the old root.
const passing = 3 * time.Second

// lasting returns the users of a root that stay.
func lasting(root string, users func(root string) ([]string, error)) ([]string, error) {
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		all, err := users(root)
		if err != nil || len(all) == 0 || time.Since(begin) > passing {
			return all, err
		}
	}
}

// mountUsers names what has a root's snapshots mounted, in any mount namespace: containers where
// they can be told, mount points otherwise.
func mountUsers(root string) ([]string, error) {
	var users, roots []string
	err := eachMount(func(pid string, m mountLine) {
		if m.fstype != "overlay" || !strings.Contains(m.options, "="+filepath.Join(root, "snapshots")+"/") {
			return
		}
		name := containerOf(m.dir)
		switch {
		case m.dir == "/": // inside a container, whose root file system is mostly seen outside too
			roots = append(roots, "process "+pid)
			return
		case name == "":
			name = m.dir + " (seen by process " + pid + ")"
		}
		users = append(users, name)
	})
	if len(users) == 0 {
		users = roots
	}
	slices.Sort(users)
	return slices.Compact(users), err
}

// imageUsers names the processes in whose mount namespaces a root's image files are mounted.
func imageUsers(root string) (users []string, err error) {
	err = eachMount(func(pid string, m mountLine) {
		if m.fstype == "erofs" && strings.HasPrefix(m.source, filepath.Join(root, "cache")+"/") {
			users = append(users, "process "+pid+" on "+m.dir)
		}
	})
	return users, err
}

// eachMount calls use with every mount of every mount namespace, and a process that is in it.
func eachMount(use func(pid string, m mountLine)) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, p := range processes {
		ns, err := os.Readlink(filepath.Join("/proc", p.Name(), "ns/mnt"))
		if err != nil || seen[ns] {
			continue // not a process, or one that has ended
		}
		seen[ns] = true
		mounts, err := readMountsOf(filepath.Join("/proc", p.Name(), "mountinfo"))
		if err != nil {
			continue // it has ended
		}
		for _, m := range mounts {
			use(p.Name(), m)
		}
	}
	return nil
}
