package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
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
	total := int64(mostMemory)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		total = int64(info.Totalram) * int64(info.Unit)
	}
	p, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return total
	}
	for line := range strings.Lines(string(p)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for ; ; group = filepath.Dir(group) { // a limit holds for all groups below
			if limit, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "memory.max")); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64); err == nil { // it may be "max"
					total = min(total, n)
				}
			}
			if group == "/" || group == "." {
				break
			}
		}
	}
	return total
}
