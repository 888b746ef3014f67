package host

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/volume"
)

// identity is who a node is. It is kept in a file, and is another one if that is lost: an emptied root cannot know what
// its node owned, so it must wait like any other.
type identity struct {
	Node    volume.ID `json:"node"`
	Machine string    `json:"machine"` // where it was last, a hint: a machine may get another id, and a root another machine
}

// NodeFile is what a damaged file of the identity costs.
var NodeFile = durable.Kind{
	Name: "node.json",
	Lost: "who this node is to its stores, unless volumes.json still said so: volumes that it had attached are another node's then",
	Do: "see what snapctl volume inspect says of each volume; where one has failed, detach it and attach it again: that waits until " +
		"the old lease has ended; then remove this file",
}

// errNoNode says that an identity is nobody's: two nodes must never be the same one.
var errNoNode = errors.New("it names no node")

// loadIdentity returns who this node is: the root says so. Where its file is damaged or gone, that is who earlier was, as the
// record of volumes has it; else it is somebody new. Whoever runs with a copy of the root is the same node, and is kept from
// harm by the lease, and on one machine by a lock.
func loadIdentity(path string, earlier identity, log *slog.Logger) (identity, error) {
	machine := readLine("/etc/machine-id")
	id, found, err := durable.LoadJSON(path, NodeFile, log, func(id *identity) error {
		if id.Node == (volume.ID{}) {
			return errNoNode
		}
		return nil
	})
	if err != nil {
		return id, err
	}
	if found == durable.Whole {
		if id.Machine == machine {
			return id, nil
		}
		log.Info("the machine's id is not what it was: this node stays who it is", "node", id.Node, "was", id.Machine, "is", machine)
		id.Machine = machine
		return id, durable.SaveJSON(path, id)
	}
	if earlier.Node != (volume.ID{}) {
		if found == durable.Absent {
			if err := durable.Miss(path, NodeFile, log, "this node has used volumes before"); err != nil {
				return id, err
			}
		}
		earlier.Machine = machine
		return earlier, durable.SaveJSON(path, earlier)
	}
	id = identity{Node: volume.NewID(), Machine: machine}
	return id, durable.SaveJSON(path, id)
}

// readLine returns a file's content, "" if there is none.
func readLine(path string) string {
	p, err := os.ReadFile(path)
	if err != nil {
		return "" // not every machine has one
	}
	return strings.TrimSpace(string(p))
}

func bootID() string { return readLine("/proc/sys/kernel/random/boot_id") }

// bootTime is the clock by which leases are measured. It goes on while the machine sleeps.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err)) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}
