package probe

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// userNamespace returns a user namespace with an ordinary mapping.
func userNamespace() (*os.File, error) {
	// A process that waits to be traced never runs: it is there to have the namespace.
	c := exec.Command("/proc/self/exe")
	const ids = 65536
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100_000, Size: ids}}
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: m, GidMappings: m, Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	f, err := os.Open("/proc/" + strconv.Itoa(c.Process.Pid) + "/ns/user")
	_ = c.Process.Kill() // it did its work
	_ = c.Wait()
	return f, err
}
