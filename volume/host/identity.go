package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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
	return id, save(path, id)
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

// save replaces a JSON file. A crash leaves the one before or this one.
func save(path string, v any) error {
	p, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
