package testbed

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// OldestContainerd is the oldest line of containerd that Remora promises to work with; the Makefile pins which of it runs.
const OldestContainerd = "2.1"

// containerdFrom names the containerd of all stacks whose Options name none.
const containerdFrom = "REMORA_CONTAINERD"

// containerdDir returns the directory of a line's programs. For the containerd that most tests run, which PATH has, it is "".
func containerdDir(line string) (string, error) {
	line = cmp.Or(line, os.Getenv(containerdFrom))
	if line == "" {
		return "", nil
	}
	dir := filepath.Join(Work(), "tools", "containerd-"+line)
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("containerd %s is not installed: run make tools: %w", line, err)
		}
	}
	return dir, nil
}

// ofContainerd returns how a program of the stack's containerd is started.
func (s *Stack) ofContainerd(name string) string {
	if s.containerdDir == "" {
		return name
	}
	return filepath.Join(s.containerdDir, name)
}

// containerdEnv has containerd find its own shim before any other.
func (s *Stack) containerdEnv() []string {
	env := s.opts.ContainerdEnv
	if s.containerdDir != "" {
		env = append(env[:len(env):len(env)], "PATH="+s.containerdDir+":"+searchPath())
	}
	return env
}

// MapsNoMounts reports whether the stack's containerd shows a container in a user namespace nothing that is mounted on its layers.
func (s *Stack) MapsNoMounts() bool { return strings.HasSuffix(s.containerdDir, "-"+OldestContainerd) }
