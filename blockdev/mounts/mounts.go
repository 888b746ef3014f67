package mounts

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Mount is what we use of a line of mountinfo (proc_pid_mountinfo(5)).
type Mount struct {
	Dir     string // the mount point, as its namespace sees it
	Type    string // of file system
	Source  string
	Options string // of the file system, separated by commas
	Root    string // what of the file system is mounted: "/", unless the mount is a bind mount of a part

	major, minor uint32
}

// Device returns the numbers of the mount's device.
func (m Mount) Device() (major, minor uint32) { return m.major, m.minor }

// Lowers returns an overlay's lower directories as it was given them, the topmost first.
func (m Mount) Lowers() (dirs []string) {
	if m.Type != "overlay" {
		return nil
	}
	for opt := range strings.SplitSeq(m.Options, ",") {
		if list, ok := strings.CutPrefix(opt, "lowerdir="); ok {
			dirs = append(dirs, strings.Split(list, ":")...)
		} else if dir, ok := strings.CutPrefix(opt, "lowerdir+="); ok {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// Own returns the mounts of this process's namespace, oldest first.
func Own() ([]Mount, error) { return read("/proc/self/mountinfo") }

// Under returns the mounts of this process's namespace below a directory, oldest first.
func Under(dir string) ([]Mount, error) {
	all, err := Own()
	var under []Mount
	for _, m := range all {
		if strings.HasPrefix(m.Dir, dir+"/") {
			under = append(under, m)
		}
	}
	return under, err
}

func read(path string) ([]Mount, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parse(f)
}

// parse leaves out lines that it does not understand. A line may be long: an overlay of 500 layers names them all. The library
// moby/sys/mountinfo (0.7.3) fails at a line of 64 KiB, and then returns no mount at all.
func parse(r io.Reader) (all []Mount, err error) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		before, after, ok := strings.Cut(in.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Split(after, " ") // a source may be empty
		if !ok || len(fields) < 5 || len(rest) < 3 {
			continue
		}
		m := Mount{Dir: unescape(fields[4]), Type: rest[0], Source: unescape(rest[1]), Options: rest[2], Root: unescape(fields[3])}
		if _, err := fmt.Sscanf(fields[2], "%d:%d", &m.major, &m.minor); err != nil {
			continue
		}
		all = append(all, m)
	}
	return all, in.Err()
}

// escapes are what the kernel puts for characters that separate fields (mangle in its fs/proc_namespace.c).
var escapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")

func unescape(s string) string { return escapes.Replace(s) }

// A Namespace is a mount namespace.
type Namespace struct {
	PID string // a process that is in it
	Own bool   // this process is in it
}

func (n Namespace) String() string {
	name, err := os.ReadFile(filepath.Join("/proc", n.PID, "comm"))
	if err != nil {
		return "process " + n.PID
	}
	return fmt.Sprintf("process %s (%s)", n.PID, strings.TrimSpace(string(name)))
}

// Everywhere calls use with every mount of every mount namespace that has a process.
func Everywhere(use func(n Namespace, m Mount)) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, p := range processes {
		ns, err := os.Readlink(filepath.Join("/proc", p.Name(), "ns/mnt"))
		if err != nil || seen[ns] {
			continue // not a process, or one that has ended
		}
		all, err := read(filepath.Join("/proc", p.Name(), "mountinfo"))
		if err != nil {
			continue // it has ended; another may be in the same namespace
		}
		seen[ns] = true
		for _, m := range all {
			use(Namespace{PID: p.Name(), Own: ns == own}, m)
		}
	}
	return nil
}

// On returns what tells the mounts of a block device's file system.
func On(dev string) (func(Mount) bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dev, Err: err}
	}
	real, err := filepath.EvalSymlinks(dev)
	if err != nil {
		return nil, err
	}
	return func(m Mount) bool { // btrfs has numbers of its own
		return m.major == unix.Major(st.Rdev) && m.minor == unix.Minor(st.Rdev) || m.Source == real
	}, nil
}

// Passing is for how long a mount may be seen in another namespace that is on its way out: a container that starts, of
// whatever snapshotter, has a copy of every mount of the node until it has left the old root.
const Passing = 10 * time.Second

// While returns when passing says that it is over, or when patience or ctx are.
func While(ctx context.Context, patience time.Duration, passing func() bool) {
	for begin := time.Now(); passing() && time.Since(begin) < patience; {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}
