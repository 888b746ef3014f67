package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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
	Machine string    `json:"machine"` // of whom the file is: a copy of the disk is another node
}

func loadIdentity(path string) (identity, error) {
	machine := readLine("/etc/machine-id")
	var id identity
	p, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(p, &id); err != nil {
			return id, fmt.Errorf("%s: %w (remove it and this machine is a new node)", path, err)
		}
		if id.Machine == machine {
			return id, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return id, err
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
