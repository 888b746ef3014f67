package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// Detach takes every layer's mount away and ends what the mounts depend on. It is refused while
// anything goes on using one: the error names the containers. What is pulled stays pulled; the next start
// of a container mounts its layers again.
//
// No layer is mounted meanwhile, and no container is told where its layers are. One that was told a moment ago, and has not
// mounted them yet, is waited for: it would read zeros where an image is incomplete.
func (s *Snapshotter) Detach() (layers int, err error) {
	if err := s.unused(); err != nil {
		return 0, err
	}
	for _, b := range s.allBindings() {
		b.mu.Lock()
		a := b.attempt
		b.mu.Unlock()
		if a != nil {
			<-a.done // it may be about to mount
		}
	}
	s.mounting.Lock()
	defer s.mounting.Unlock()
	if err := s.awaitAnswered(); err != nil {
		return 0, err
	}
	for _, b := range s.allBindings() {
		n, err := s.detachOne(b)
		layers += n
		if err != nil {
			return layers, err
		}
	}
	// An overlay that was mounted meanwhile goes on with what was there.
	if err := s.unused(); err != nil {
		return layers, err
	}
	// Unmounted here, an image may still be mounted in a mount namespace that has a copy. If the
	// kernel asks us for what it misses, we must not go.
	if left, err := s.lasting(s.imageUsers); err != nil || len(left) > 0 {
		return layers, errors.Join(err, fmt.Errorf("image files are still mounted in other mount namespaces: %s", strings.Join(left, ", ")))
	}
	s.log.Info("all layers detached", "layers", layers)
	return layers, s.exports.end()
}

// unused fails if a container has a layer mounted.
func (s *Snapshotter) unused() error {
	users, err := s.lasting(s.mountUsers)
	if err == nil && len(users) > 0 {
		err = fmt.Errorf("layers are in use; stop first: %s", strings.Join(users, ", "))
	}
	return err
}

// mountSoon is within what time of Mounts a container's root file system is mounted.
const mountSoon = 10 * time.Second

// awaitAnswered returns when all that were told their mounts have mounted them, or will not.
func (s *Snapshotter) awaitAnswered() error {
	for {
		s.mu.Lock()
		s.forgetAnsweredLocked()
		n := len(s.answered)
		s.mu.Unlock()
		if err := s.unused(); n == 0 || err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// forgetAnsweredLocked forgets those who have mounted what they were told by now, or will not.
func (s *Snapshotter) forgetAnsweredLocked() {
	for id, at := range s.answered {
		if time.Since(at) > mountSoon {
			delete(s.answered, id)
		}
	}
}

// detachOne unmounts a binding's layer unless that is in use.
func (s *Snapshotter) detachOne(b *binding) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how == notMounted {
		return 0, nil
	}
	if err := s.dropGateLocked(b); err != nil {
		return 0, err
	}
	if err := s.kernel.UnmountUnused(b.fsDir()); err != nil {
		return 0, fmt.Errorf("%s is in use by something that is not a container (try fuser -vm %s): %w",
			b.saved.Source.Describe(), b.fsDir(), err)
	}
	return 1, s.unmountLocked(b)
}

// A user is what goes on using a mount.
type user struct {
	name string
	here bool // in this mount namespace, not in another's copy of it
}

// lasting names the users that stay. Those in other namespaces alone may be on their way out.
func (s *Snapshotter) lasting(users func() ([]user, error)) (names []string, err error) {
	mounts.While(context.Background(), mounts.Passing, func() bool {
		var all []user
		all, err = users()
		names = nil
		for _, u := range all {
			names = append(names, u.name)
		}
		return err == nil && len(all) > 0 && !slices.ContainsFunc(all, func(u user) bool { return u.here })
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// mountUsers names what has our snapshots mounted, in any mount namespace: containers where
// they can be told, mount points otherwise.
func (s *Snapshotter) mountUsers() ([]user, error) {
	var users, roots []user
	err := s.kernel.Everywhere(func(n mounts.Namespace, m mounts.Mount) {
		if m.Type != "overlay" || !strings.Contains(m.Options, "="+s.snapshotsDir()+"/") && !strings.Contains(m.Options, "="+s.gatesDir()+"/") {
			return
		}
		s.seen(m.Options)
		name := containerOf(m.Dir)
		switch {
		case m.Dir == "/": // inside a container, whose root file system is mostly seen outside too
			roots = append(roots, user{n.String(), n.Own})
			return
		case name == "":
			name = fmt.Sprintf("%s (seen by %s)", m.Dir, n)
		}
		users = append(users, user{name, n.Own})
	})
	if len(users) == 0 {
		users = roots
	}
	return users, err
}

// imageUsers names the processes in whose mount namespaces our image files are mounted.
func (s *Snapshotter) imageUsers() (users []user, err error) {
	err = s.kernel.Everywhere(func(n mounts.Namespace, m mounts.Mount) {
		if m.Type == "erofs" && strings.HasPrefix(m.Source, filepath.Join(s.root, "cache")+"/") {
			users = append(users, user{fmt.Sprintf("%s on %s", n, m.Dir), n.Own})
		}
	})
	return users, err
}

// seen notes that a snapshot is mounted, whose directory is among an overlay's options.
func (s *Snapshotter) seen(options string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.answered {
		if strings.Contains(options, "="+s.upperPath(id)) {
			delete(s.answered, id)
		}
	}
}
