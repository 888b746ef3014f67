package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
)

const (
	mostMemory = 1 << 30
	// leastMemory is what a unit of the largest kind takes, packed and decoded, beside one that is opened.
	leastMemory = 256 << 20
)

// memory returns the bytes that decoding may take.
func (c *config) memory() (int64, error) {
	if c.Limits.Memory == "auto" {
		return min(max(machineMemory()/4, leastMemory), mostMemory), nil
	}
	n, err := units.RAMInBytes(c.Limits.Memory)
	if err != nil || n < leastMemory {
		return 0, fmt.Errorf("[limits] memory = %q: want auto, or a size of 256MiB or more", c.Limits.Memory)
	}
	return n, nil
}

// machineMemory returns the bytes of memory that this process may take: the machine's, or its control group's if that has a
// limit.
func machineMemory() int64 {
	if limit, ok := groupMemory(); ok {
		return limit
	}
	return allMemory()
}

// allMemory returns the bytes of memory that the machine has.
func allMemory() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return mostMemory
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// groupMemory returns to how many bytes of memory this process's control group limits it, if it does.
func groupMemory() (limit int64, ok bool) {
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, false
	}
	mounted, err := mounts.Own()
	if err != nil {
		return 0, false
	}
	limit = groupLimit(string(groups), mounted)
	return limit, limit < allMemory() // version 1 has a number for no limit, too
}

// groupLimit returns the least limit of memory of a process's control groups, as /proc/PID/cgroup lists them, and of those above.
func groupLimit(groups string, mounted []mounts.Mount) int64 {
	limit := int64(math.MaxInt64)
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path
		if len(fields) < 3 {
			continue
		}
		file, is := "", func(mounts.Mount) bool { return false }
		if fields[1] == "" {
			file, is = "memory.max", func(m mounts.Mount) bool { return m.Type == "cgroup2" }
		} else if hasMemory(fields[1]) {
			file, is = "memory.limit_in_bytes", func(m mounts.Mount) bool { return m.Type == "cgroup" && hasMemory(m.Options) }
		}
		for _, m := range mounted {
			if !is(m) {
				continue
			}
			// A container may have its own group mounted as the first one, so not all of the path need be there.
			for group := filepath.Clean("/" + fields[2]); ; group = filepath.Dir(group) {
				if p, err := os.ReadFile(filepath.Join(m.Dir, group, file)); err == nil {
					if n, err := strconv.ParseInt(strings.TrimSpace(string(p)), 10, 64); err == nil { // it may be "max"
						limit = min(limit, n)
					}
				}
				if group == "/" {
					break
				}
			}
		}
	}
	return limit
}

// hasMemory reports whether a list has the controller of memory.
func hasMemory(list string) bool { return slices.Contains(strings.Split(list, ","), "memory") }
