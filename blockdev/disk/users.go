package disk

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/openers"
)

// users are where a block device is mounted, and who has it open.
type users struct {
	dev       string
	here      []string // mount points, in this mount namespace
	elsewhere []string // the same in others, with a process that is there
	openers   openers.Openers
	err       error // why that is not known
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
	if err == nil {
		u.openers, err = openers.Of(dev)
	}
	u.err = err
	return u
}

// openSince returns what tells whether somebody has a block device open for longer than those that only look at new devices do.
func openSince(begin time.Time) func(dev string) bool {
	return func(dev string) bool {
		if time.Since(begin) < looking {
			return false
		}
		o, err := openers.Of(dev)
		return err == nil && !o.None()
	}
}

const looking = time.Second // for which udev and its like have a device open

// String says what to do to get rid of them.
func (u users) String() string {
	switch {
	case u.err != nil:
		return fmt.Sprintf("unmount it first, and close it (who uses it is not known: %v)", u.err)
	case len(u.here) > 0:
		return "unmount it first, from " + strings.Join(u.here, ", ")
	case len(u.elsewhere) > 0:
		return "unmounted here, it is still mounted in other mount namespaces: on " + strings.Join(u.elsewhere, ", ")
	case !u.openers.None():
		return "open by " + u.openers.String()
	}
	return "it is not mounted, but something has it open (try fuser -v " + u.dev + "), or uses files of what was unmounted lazily"
}
