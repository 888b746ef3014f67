package disk

import (
	"fmt"
	"slices"
	"strings"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// users are where a block device is mounted.
type users struct {
	dev       string
	here      []string // mount points, in this mount namespace
	elsewhere []string // the same in others, with a process that is there
	err       error    // why that is not known
}

// mountedHere reports whether this mount namespace has a block device mounted.
func mountedHere(dev string) bool {
	on, err := mounts.On(dev)
	if err != nil {
		return false // usersOf says why
	}
	all, err := mounts.Own()
	return err == nil && slices.ContainsFunc(all, on)
}

func usersOf(dev string) users {
	u := users{dev: dev}
	on, err := mounts.On(dev)
	if err == nil {
		err = mounts.Everywhere(func(n mounts.Namespace, m mounts.Mount) {
			switch {
			case !on(m):
			case n.Own:
				u.here = append(u.here, m.Dir)
			default:
				u.elsewhere = append(u.elsewhere, fmt.Sprintf("%s by %s", m.Dir, n))
			}
		})
	}
	u.err = err
	return u
}

// String says what to do to get rid of them.
func (u users) String() string {
	switch {
	case u.err != nil:
		return fmt.Sprintf("unmount it first (where it is mounted is not known: %v)", u.err)
	case len(u.here) > 0:
		return "unmount it first, from " + strings.Join(u.here, ", ")
	case len(u.elsewhere) > 0:
		return "unmounted here, it is still mounted in other mount namespaces: on " + strings.Join(u.elsewhere, ", ")
	}
	return "it is not mounted, but something has it open (try fuser -v " + u.dev + "), or uses files of what was unmounted lazily"
}
