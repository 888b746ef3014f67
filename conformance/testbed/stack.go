package testbed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options of a Stack. The zero value works.
type Options struct {
	Config   string // remorad's configuration, beyond where containerd is
	Root     string // remorad's root; default in the stack's directory
	Registry string // an existing registry's storage, so that pushes need not be repeated
	LogLevel string // remorad's; default debug
	Auth     bool   // the registry wants User and Password
	Bare     bool   // remorad alone, without a registry and containerd: what volumes and disks need
	// Containerd is the line of containerd that runs, OldestContainerd for one. The default is what REMORA_CONTAINERD names;
	// without that, the newest.
	Containerd       string
	ContainerdConfig string // beyond the proxy plugin and the transfer service
	// ContainerdEnv and RemoradEnv go into the daemons' environments, each as NAME=VALUE.
	ContainerdEnv, RemoradEnv []string
}

// Credentials of a registry with Options.Auth; the hash is the password's, by bcrypt.
const (
	User     = "robot"
	Password = "secret"
	htpasswd = User + ":$2a$05$sWMv6b90fRcEiYAQE1/qAuwWpeVtYI/4dBZDs0rhhfiR59jMv3UJ6\n"
)

// A Stack is a registry, containerd and remorad, with everything they write in one directory.
type Stack struct {
	Dir        string
	Addr       string // the registry's host:port
	Root       string // remorad's
	Socket     string // containerd's
	Remora     string // remorad's socket
	HostsDir   string // hosts.toml for every party, by which registries are plain HTTP
	Namespace  string // containerd's, in which containers run unless a command says otherwise
	registry   *Process
	containerd *Process
	remorad    *Process
	opts       Options
	program    string // instead of remorad, and the other instead of snapctl
	snapctl    string
	stores     *usedStores
	// containerdDir has the programs of a containerd that is not PATH's.
	containerdDir string
}

// UsePrograms has other programs used as remorad and snapctl from now on. "" is that of PATH.
func (s *Stack) UsePrograms(remorad, snapctl string) { s.program, s.snapctl = remorad, snapctl }

// Configure adds to the configuration of the next remorad.
func (s *Stack) Configure(more string) { s.opts.Config += more }

// NewStack starts all three, or remorad alone. Close must be called.
func NewStack(dir string, opts Options) (_ *Stack, err error) {
	s := &Stack{
		Dir: dir, Root: opts.Root, Socket: filepath.Join(dir, "containerd.sock"), Remora: filepath.Join(dir, "remora.sock"),
		HostsDir: filepath.Join(dir, "hosts"), Namespace: newNamespace(), opts: opts, stores: new(usedStores),
	}
	if s.Root == "" {
		s.Root = filepath.Join(dir, "remora")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if opts.Bare {
		return s, s.StartRemorad()
	}
	if s.containerdDir, err = containerdDir(opts.Containerd); err != nil {
		return nil, err
	}
	if err := s.startRegistry(); err != nil {
		return nil, err
	}
	if err := s.PlainHTTP(s.Addr, s.Addr); err != nil {
		return nil, err
	}
	if err := s.StartContainerd(); err != nil {
		return nil, err
	}
	return s, s.StartRemorad()
}

var stacks atomic.Int64

// newNamespace names a namespace that no other stack has. runc keeps the state of containers, and
// their cgroups, by namespace and name for the whole machine, whichever containerd has made them.
func newNamespace() string { return fmt.Sprintf("remora-test-%d-%d", os.Getpid(), stacks.Add(1)) }

// removeNamespace takes away the empty directories that runc leaves of a namespace.
func (s *Stack) removeNamespace() error {
	left, err := filepath.Glob("/sys/fs/cgroup/*/" + s.Namespace)
	errs := []error{err}
	for _, dir := range append(left, "/sys/fs/cgroup/"+s.Namespace, "/run/containerd/runc/"+s.Namespace) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

var given sync.Map // the addresses that FreeAddr has returned

// FreeAddr returns a port of loopback that is free now. No port is returned twice, as whoever asked first may not listen yet.
// It is below those that the kernel gives away by itself, so that a server that was stopped gets its own again.
func FreeAddr() (string, error) {
	const first, last = 12000, 32000
	var err error
	for range last - first {
		addr := fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(last-first))
		if _, again := given.LoadOrStore(addr, true); again {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", fmt.Errorf("no free port: %w", err)
}

func accepts(network, addr string) func() bool {
	return func() bool {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err != nil {
			return false
		}
		c.Close()
		return true
	}
}

// registryStorage is the directory in which the registry keeps everything.
func (s *Stack) registryStorage() string {
	return cmp.Or(s.opts.Registry, filepath.Join(s.Dir, "registry"))
}

func (s *Stack) startRegistry() error {
	addr, err := FreeAddr()
	if err != nil {
		return err
	}
	s.Addr = addr
	config := fmt.Sprintf(`version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http: {addr: %q}
`, s.registryStorage(), addr)
	if s.opts.Auth {
		users := filepath.Join(s.Dir, "htpasswd")
		if err := os.WriteFile(users, []byte(htpasswd), 0o600); err != nil {
			return err
		}
		config += fmt.Sprintf("auth:\n  htpasswd: {realm: test, path: %q}\n", users)
	}
	path := filepath.Join(s.Dir, "registry.yml")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return err
	}
	// It takes 4 MiB of memory for each request, and would look for garbage after each.
	env := []string{"GOGC=1000"}
	s.registry, err = Start(filepath.Join(s.Dir, "registry.log"), accepts("tcp", addr), env, "docker-registry", "serve", path)
	return err
}

// PlainHTTP makes a registry name stand for a server, for containerd and remorad alike.
func (s *Stack) PlainHTTP(name, server string) error {
	dir := filepath.Join(s.HostsDir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	toml := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n", server, server)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644)
}

// StartContainerd starts containerd with the proxy plugin and the transfer service set up.
func (s *Stack) StartContainerd() error {
	config := fmt.Sprintf(`version = 3
root = "%[1]s/containerd/root"
state = "%[1]s/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = %[2]q
[ttrpc]
  address = "%[2]s.ttrpc"
[proxy_plugins.remora]
  type = "snapshot"
  address = %[3]q
  capabilities = ["remap-ids"]
  [proxy_plugins.remora.exports]
    root = %[4]q
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%[5]s"
  snapshotter = "remora"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%[5]s"
  snapshotter = "overlayfs"
[plugins."io.containerd.transfer.v1.local"]
  config_path = %[6]q
%[7]s`, s.Dir, s.Socket, s.Remora, s.Root, runtime.GOARCH, s.HostsDir, s.opts.ContainerdConfig)
	if err := os.WriteFile(s.ContainerdConfig(), []byte(config), 0o644); err != nil {
		return err
	}
	// Containers in user namespaces must get through to their root file systems, as in /run.
	for _, dir := range []string{filepath.Dir(s.Dir), s.Dir, filepath.Join(s.Dir, "containerd")} {
		if err := errors.Join(os.MkdirAll(dir, 0o711), letThrough(dir)); err != nil {
			return err
		}
	}
	var err error
	s.containerd, err = Start(filepath.Join(s.Dir, "containerd.log"), accepts("unix", s.Socket), s.containerdEnv(),
		s.ofContainerd("containerd"), "--config", s.ContainerdConfig())
	return err
}

// letThrough lets everybody go through a directory, and changes nothing of one that does: it may be /tmp.
func letThrough(dir string) error {
	st, err := os.Stat(dir)
	if err != nil || st.Mode()&0o011 == 0o011 {
		return err
	}
	return os.Chmod(dir, 0o711)
}

// ContainerdConfig is the path of containerd's configuration.
func (s *Stack) ContainerdConfig() string { return filepath.Join(s.Dir, "containerd.toml") }

// StartRemorad starts remorad and returns when it serves, and containerd has noticed.
func (s *Stack) StartRemorad() error {
	if err := s.StartRemoradOnly(); err != nil {
		return err
	}
	return s.AwaitContainerd()
}

// StartRemoradOnly starts remorad and returns when it serves.
func (s *Stack) StartRemoradOnly() error {
	// Tests look at what is lazy, so nothing is completed or learned behind their backs, and an outage
	// ends in an error, unless a test says otherwise.
	const (
		defaults = "[fetch]\nbackground = \"off\"\nunreachable = \"eio\"\n"
		noLearn  = "[profile]\nlearn = false\n"
	)
	config := fmt.Sprintf("[containerd]\naddress = %q\n[registry]\nconfig_path = [%q]\ndocker_config = \"\"\n", s.Socket, s.HostsDir)
	config += s.opts.Config
	if !strings.Contains(config, "[fetch]") {
		config += defaults
	}
	if !strings.Contains(config, "[profile]") {
		config += noLearn
	}
	path := filepath.Join(s.Dir, "remora.toml")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return err
	}
	level := s.opts.LogLevel
	if level == "" {
		level = "debug"
	}
	// That of one that was killed may be open for a moment still, in a process that it was about to start.
	if err := os.Remove(s.Remora); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	s.remorad, err = Start(s.RemoradLog(), accepts("unix", s.Remora), s.opts.RemoradEnv, cmp.Or(s.program, "remorad"),
		"--config", path, "--root", s.Root, "--address", s.Remora, "--log-level", level)
	return err
}

// AwaitContainerd returns when containerd reaches remorad. A containerd that has no snapshot of
// remorad's asks it nothing, so there it proves nothing: see TestPullRightAfterStart.
func (s *Stack) AwaitContainerd() (err error) {
	if s.opts.Bare {
		return nil
	}
	// If containerd has tried while nobody served, it waits up to 3 s before it tries again.
	for range 600 {
		if _, err = s.Ctr(context.Background(), "snapshots", "--snapshotter", "remora", "ls"); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// RemoradLog is the path of remorad's log.
func (s *Stack) RemoradLog() string { return filepath.Join(s.Dir, "remorad.log") }

// RemoradPID returns remorad's process.
func (s *Stack) RemoradPID() int { return s.remorad.Cmd.Process.Pid }

// RemoradEnded is closed when remorad's process has ended, whoever ended it.
func (s *Stack) RemoradEnded() <-chan struct{} { return s.remorad.done }

// StopRemorad ends remorad by a signal.
func (s *Stack) StopRemorad(sig syscall.Signal) error {
	err := s.remorad.Stop(sig)
	s.remorad = nil
	return err
}

// RestartRemorad ends remorad by a signal and starts it again.
func (s *Stack) RestartRemorad(sig syscall.Signal) error {
	return errors.Join(s.StopRemorad(sig), s.StartRemorad())
}
