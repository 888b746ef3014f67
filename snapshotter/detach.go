package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// detaching takes all mounts away.
type detaching struct {
	*base
	bindings  *bindings
	mountings *mountings
	gating    *gating

	mu       sync.Mutex           // guards answered
	answered map[string]time.Time // snapshots whose mounts were told of late, by id
}

// Detach takes every layer's mount away and ends what the mounts depend on. It is refused while
// anything goes on using one: the error names the containers. What is pulled stays pulled; the next start
// of a container mounts its layers again.
//
// No layer is mounted meanwhile, and no container is told where its layers are. One that was told a moment ago, and has not
// mounted them yet, is waited for: it would read zeros where an image is incomplete.
func (d *detaching) Detach() (layers int, err error) {
	if err := d.unused(); err != nil {
		return 0, err
	}
	for _, b := range d.bindings.all() {
		b.mu.Lock()
		a := b.attempt
		b.mu.Unlock()
		if a != nil {
			<-a.done // it may be about to mount
		}
	}
	d.mountings.mounting.Lock()
	defer d.mountings.mounting.Unlock()
	if err := d.awaitAnswered(); err != nil {
		return 0, err
	}
	shows, err := d.shownBy(d.bindings.all()...)
	if err != nil {
		return 0, err
	}
	switch views, err := d.viewed(shows); {
	case err != nil:
		return 0, err
	case len(views) > 0:
		return 0, fmt.Errorf("views of layers are mounted; unmount first: %s", strings.Join(views, ", "))
	}
	for _, b := range d.bindings.all() {
		n, err := d.detachOne(b)
		layers += n
		if err != nil {
			return layers, err
		}
	}
	// An overlay that was mounted meanwhile goes on with what was there.
	if err := d.unused(); err != nil {
		return layers, err
	}
	// Unmounted here, an image may still be mounted in a mount namespace that has a copy. If the
	// kernel asks us for what it misses, we must not go.
	if left, err := d.lasting(func() ([]user, error) { return d.imageUsers(shows) }); err != nil || len(left) > 0 {
		return layers, errors.Join(err, fmt.Errorf("image files are still mounted in other mount namespaces: %s", strings.Join(left, ", ")))
	}
	d.log.Info("all layers detached", "layers", layers)
	return layers, d.exports.end()
}

// unused fails if a container has a layer mounted.
func (d *detaching) unused() error {
	users, err := d.lasting(d.mountUsers)
	if err == nil && len(users) > 0 {
		err = fmt.Errorf("layers are in use; stop first: %s", strings.Join(users, ", "))
	}
	return err
}

// mountSoon is within what time of Mounts a container's root file system is mounted.
const mountSoon = 10 * time.Second

// awaitAnswered returns when all that were told their mounts have mounted them, or will not.
func (d *detaching) awaitAnswered() error {
	for {
		d.mu.Lock()
		d.forgetAnsweredLocked()
		n := len(d.answered)
		d.mu.Unlock()
		if err := d.unused(); n == 0 || err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// forget drops a snapshot that was removed.
func (d *detaching) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.answered, id)
}

// forgetAnsweredLocked forgets those who have mounted what they were told by now, or will not.
func (d *detaching) forgetAnsweredLocked() {
	for id, at := range d.answered {
		if time.Since(at) > mountSoon {
			delete(d.answered, id)
		}
	}
}

// detachOne unmounts a binding's layer unless that is in use.
func (d *detaching) detachOne(b *binding) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how == notMounted {
		return 0, nil
	}
	if err := d.gating.dropLocked(b); err != nil {
		return 0, err
	}
	if err := d.kernel.UnmountUnused(b.fsDir()); err != nil {
		return 0, fmt.Errorf("%s is in use by something that is not a container (try fuser -vm %s): %w",
			b.saved.Source.Describe(), b.fsDir(), err)
	}
	return 1, d.mountings.unmountLocked(b)
}

// A user is what goes on using a mount.
type user struct {
	name string
	here bool // in this mount namespace, not in another's copy of it
}

// lasting names the users that stay. Those in other namespaces alone may be on their way out.
func (d *detaching) lasting(users func() ([]user, error)) (names []string, err error) {
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
func (d *detaching) mountUsers() ([]user, error) {
	var users, roots []user
	err := d.kernel.Everywhere(func(n mounts.Namespace, m mounts.Mount) {
		active, lowers := d.overlayOf(m)
		if active == "" && len(lowers) == 0 {
			return
		}
		d.seen(active)
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

// treeType is the file system by which FUSE shows layers' trees: one for all of them, each in a directory of its own.
const treeType = "fuse.remora"

// shown says which layer a mount shows. It is the same for each mount of it: a copy in another mount namespace, and a bind mount,
// by which a view of one layer is mounted.
func shown(m mounts.Mount) string {
	if m.Type != treeType {
		return m.Source
	}
	number, _, _ := strings.Cut(strings.TrimPrefix(m.Root, "/"), "/")
	major, minor := m.Device()
	return fmt.Sprintf("tree %s of %d:%d", number, major, minor)
}

// shownBy returns what is mounted on layers' directories.
func (d *detaching) shownBy(layers ...*binding) (map[string]bool, error) {
	dirs := map[string]bool{}
	for _, b := range layers {
		dirs[b.fsDir()] = true
	}
	own, err := d.kernel.Own()
	shows := map[string]bool{}
	for _, m := range own {
		if dirs[m.Dir] && (m.Type == "erofs" || m.Type == treeType) {
			shows[shown(m)] = true
		}
	}
	return shows, err
}

// viewed returns where clients have layers mounted by themselves, which an unmounted layer would take the files away from. Copies in
// other mount namespaces mostly go with the layer's mount, and are looked for afterwards.
func (d *detaching) viewed(shows map[string]bool) (dirs []string, err error) {
	own, err := d.kernel.Own()
	for _, m := range own {
		if shows[shown(m)] && !strings.HasPrefix(m.Dir, d.root+"/") {
			dirs = append(dirs, m.Dir)
		}
	}
	return dirs, err
}

// imageUsers names the processes in whose mount namespaces our image files are mounted, or what was mounted on layers' directories.
func (d *detaching) imageUsers(shows map[string]bool) (users []user, err error) {
	err = d.kernel.Everywhere(func(n mounts.Namespace, m mounts.Mount) {
		if shows[shown(m)] && !d.reused(m) || m.Type == "erofs" && strings.HasPrefix(m.Source, filepath.Join(d.root, "cache")+"/") {
			users = append(users, user{fmt.Sprintf("%s on %s", n, m.Dir), n.Own})
		}
	})
	return users, err
}

// reused reports whether a mount is of a loop device whose number one of ours had, and that has another's file by now.
func (d *detaching) reused(m mounts.Mount) bool {
	if !strings.HasPrefix(m.Source, "/dev/loop") {
		return false
	}
	file := d.kernel.LoopFile(m.Source)
	return filepath.Dir(file) != "/" && file != "" && !strings.HasPrefix(file, d.root+"/") // one on a mount that has gone is just /2
}

// seen notes that a snapshot is mounted.
func (d *detaching) seen(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.answered, id)
}

// answer notes that a container is told its mounts, unless a Detach has taken a layer away since they were ensured. One that was told
// of late may be told again while a Detach waits for it: clients ask more than once before they mount.
func (d *detaching) answer(snap storage.Snapshot) bool {
	if d.answerAgain(snap.ID) {
		return true
	}
	d.mountings.mounting.RLock()
	defer d.mountings.mounting.RUnlock()
	for _, b := range d.bindings.of(snap.ParentIDs) {
		if !b.mounted() {
			return false
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetAnsweredLocked()
	d.answered[snap.ID] = time.Now()
	return true
}

// answerAgain notes that a snapshot's mounts are told once more. Its layers stay as long as it is among answered.
func (d *detaching) answerAgain(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetAnsweredLocked()
	_, ok := d.answered[id]
	if ok {
		d.answered[id] = time.Now()
	}
	return ok
}
