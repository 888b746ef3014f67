package openers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// A Process has a device open.
type Process struct {
	PID     int
	Command string
}

// Openers are those who use a device, but for mounts.
type Openers struct {
	Processes []Process
	Devices   []string // on top of it: loop devices, device mapper, RAID
	Swap      bool
}

// None reports whether nobody was found.
func (o Openers) None() bool { return len(o.Processes)+len(o.Devices) == 0 && !o.Swap }

// String names them all.
func (o Openers) String() string {
	var all []string
	for _, p := range o.Processes {
		all = append(all, fmt.Sprintf("process %d (%s)", p.PID, p.Command))
	}
	for _, d := range o.Devices {
		all = append(all, "device "+d)
	}
	if o.Swap {
		all = append(all, "swap (swapoff ends that)")
	}
	return strings.Join(all, ", ")
}

// Of returns who uses a device, without this process.
func Of(dev string) (o Openers, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return o, &os.PathError{Op: "stat", Path: dev, Err: err}
	}
	if o.Processes, err = processes(st); err != nil {
		return o, err
	}
	if o.Devices, err = above(dev, st); err != nil {
		return o, err
	}
	swaps, _ := os.ReadFile("/proc/swaps") // not there in a kernel without swap
	for line := range strings.Lines(string(swaps)) {
		name, _, _ := strings.Cut(line, " ")
		o.Swap = o.Swap || same(name, st)
	}
	return o, nil
}

// same reports whether a path is that of a device.
func same(path string, st unix.Stat_t) bool {
	var other unix.Stat_t
	return strings.HasPrefix(path, "/") && unix.Stat(path, &other) == nil && other.Rdev == st.Rdev &&
		other.Mode&unix.S_IFMT == st.Mode&unix.S_IFMT
}

// processes returns those that have a descriptor of a device.
func processes(st unix.Stat_t) (all []Process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !hasOpen(pid, st) {
			continue
		}
		name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm")) // it may just have ended
		all = append(all, Process{pid, strings.TrimSpace(string(name))})
	}
	return all, nil
}

// Alone reports whether no program has a device open but those that this process has started. It is false where that cannot be told.
func Alone(dev string) bool {
	by, err := Of(dev)
	return err == nil && by.Others().None()
}

// Others are those whom this process has not started.
func (o Openers) Others() Openers {
	o.Processes = slices.DeleteFunc(slices.Clone(o.Processes), func(p Process) bool { return startedHere(p.PID) })
	return o
}

// startedHere reports whether a process was started by this one.
func startedHere(pid int) bool {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := bytes.Fields(p[bytes.LastIndexByte(p, ')')+1:]) // behind its name, which may have anything in it
	return len(fields) > 1 && string(fields[1]) == strconv.Itoa(os.Getpid())
}

func hasOpen(pid int, st unix.Stat_t) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	f, err := os.Open(dir)
	if err != nil {
		return false // it has ended, or is not ours to look at
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1) // those that were there
	for _, name := range names {
		var x unix.Statx_t
		// What is open may be on a file system that does not answer: its attributes are not asked for anew.
		err := unix.Statx(int(f.Fd()), name, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &x)
		if err == nil && uint32(x.Mode)&unix.S_IFMT == st.Mode&unix.S_IFMT && unix.Mkdev(x.Rdev_major, x.Rdev_minor) == st.Rdev {
			return true
		}
	}
	return false
}

// above returns the devices that are made of one.
func above(dev string, st unix.Stat_t) (all []string, err error) {
	real, err := filepath.EvalSymlinks(dev)
	if err != nil {
		return nil, err
	}
	held, err := filepath.Glob(filepath.Join("/sys/class/block", filepath.Base(real), "holders/*"))
	if err != nil {
		return nil, err
	}
	for _, h := range held {
		name := filepath.Base(h)
		if p, err := os.ReadFile(filepath.Join(h, "dm/name")); err == nil {
			name += " (" + strings.TrimSpace(string(p)) + ")"
		}
		all = append(all, "/dev/"+name)
	}
	loops, err := blockdev.LoopFiles()
	for _, l := range loops {
		if strings.HasPrefix(l.File, "/dev/") && same(l.File, st) { // a name elsewhere may be of a file system that hangs
			all = append(all, l.Dev)
		}
	}
	return all, err
}
