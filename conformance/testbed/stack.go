package testbed

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Stack. The zero value works.
type Options struct {
	Config   string // remorad's configuration, beyond where containerd is
	Root     string // remorad's root; default in the stack's directory
	Registry string // an existing registry's storage, so that pushes need not be repeated
	LogLevel string // remorad's; default debug
	Auth     bool   // the registry wants User and Password
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
	program    string // instead of remorad
}

// UseRemorad has another program started as remorad from now on.
func (s *Stack) UseRemorad(path string) { s.program = path }

// Configure adds to the configuration of the next remorad.
func (s *Stack) Configure(more string) { s.opts.Config += more }

// NewStack starts all three. Close must be called.
func NewStack(dir string, opts Options) (_ *Stack, err error) {
	s := &Stack{
		Dir: dir, Root: opts.Root, Socket: filepath.Join(dir, "containerd.sock"), Remora: filepath.Join(dir, "remora.sock"),
		HostsDir: filepath.Join(dir, "hosts"), Namespace: newNamespace(), opts: opts,
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

// FreeAddr returns a port of loopback that is free now.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
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

func (s *Stack) startRegistry() error {
	storage := s.opts.Registry
	if storage == "" {
		storage = filepath.Join(s.Dir, "registry")
	}
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
`, storage, addr)
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
	s.registry, err = Start(filepath.Join(s.Dir, "registry.log"), accepts("tcp", addr), nil, "docker-registry", "serve", path)
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
`, s.Dir, s.Socket, s.Remora, s.Root, runtime.GOARCH, s.HostsDir)
	if err := os.WriteFile(s.ContainerdConfig(), []byte(config), 0o644); err != nil {
		return err
	}
	// Containers in user namespaces must get through to their root file systems, as in /run.
	for _, dir := range []string{filepath.Dir(s.Dir), s.Dir, filepath.Join(s.Dir, "containerd")} {
		if err := errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(dir, 0o711)); err != nil {
			return err
		}
	}
	var err error
	s.containerd, err = Start(filepath.Join(s.Dir, "containerd.log"), accepts("unix", s.Socket), nil, "containerd", "--config", s.ContainerdConfig())
	return err
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
	var err error
	s.remorad, err = Start(s.RemoradLog(), accepts("unix", s.Remora), nil, cmp.Or(s.program, "remorad"),
		"--config", path, "--root", s.Root, "--address", s.Remora, "--log-level", level)
	return err
}

// AwaitContainerd returns when containerd reaches remorad.
func (s *Stack) AwaitContainerd() (err error) {
	// If containerd has tried while nobody served, it waits up to 3 s before it tries again.
	for range 100 {
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

// Close ends everything and takes mounts away. The directory stays.
func (s *Stack) Close() error {
	var errs []error
	if s.containerd != nil {
		errs = append(errs, s.killTasks())
	}
	group := s.HolderGroup()
	errs = append(errs, s.containerd.Stop(syscall.SIGTERM), unmountUnder(filepath.Join(s.Dir, "containerd")))
	errs = append(errs, s.endMounts(), s.remorad.Stop(syscall.SIGTERM), s.KillHolder(), s.registry.Stop(syscall.SIGTERM))
	s.remorad, s.containerd, s.registry = nil, nil, nil
	return errors.Join(append(errs, unmountUnder(s.Dir), s.removeNamespace(), removeGroup(group))...)
}

// removeGroup removes the control group of a holder that was killed; one that ends by itself does.
func removeGroup(group string) error {
	if group == "" {
		return nil
	}
	for range 1000 {
		err := os.Remove(group)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) { // its process is still on its way out
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s still has processes", group)
}

// unmountUnder takes away what is mounted under a directory, the newest first.
func unmountUnder(dir string) error {
	mounts, err := MountsUnder(dir)
	errs := []error{err}
	for i := len(mounts) - 1; i >= 0; i-- {
		errs = append(errs, unix.Unmount(mounts[i], unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}

// endMounts takes the layers' mounts away, so that the holder ends with remorad.
func (s *Stack) endMounts() error {
	if s.remorad != nil && s.remorad.Running() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := s.Snapctl(ctx, "detach", "--all"); err != nil {
			return err
		}
	}
	return nil
}

// HolderPID returns the process that keeps the root's mounts alive, 0 if there is none.
func (s *Stack) HolderPID() int {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	for _, p := range all {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		if args := strings.Split(string(b), "\x00"); len(args) > 3 && args[1] == "holder" && args[3] == s.Root {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err == nil {
				return pid
			}
		}
	}
	return 0
}

// HolderGroup returns the directory of the control group that the holder has for itself, "" if it
// has none.
func (s *Stack) HolderGroup() string {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.HolderPID()))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(groups)) {
		path, unified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !unified || !strings.Contains(path, "remora-holder-") {
			continue
		}
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			if _, err := os.Stat(mount + path); err == nil {
				return mount + path
			}
		}
	}
	return ""
}

// KillHolder kills the holder and returns when it has ended.
func (s *Stack) KillHolder() error {
	pid := s.HolderPID()
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for s.HolderPID() == pid {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// killTasks ends what tests left running, so that no shim stays.
func (s *Stack) killTasks() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	namespaces, err := s.Ctr(ctx, "namespaces", "ls", "-q")
	if err != nil {
		return err
	}
	for _, ns := range strings.Fields(namespaces) {
		out, err := s.Ctr(ctx, "-n", ns, "tasks", "ls", "-q")
		if err != nil {
			return err
		}
		for _, id := range strings.Fields(out) {
			if _, err := s.Ctr(ctx, "-n", ns, "tasks", "rm", "-f", id); err != nil {
				return err
			}
		}
	}
	return nil
}

// MountsUnder lists the mount points under a directory, oldest first.
func MountsUnder(dir string) ([]string, error) {
	p, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(p)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			all = append(all, f[4])
		}
	}
	return all, nil
}

// Ctr runs ctr and returns its stdout.
func (s *Stack) Ctr(ctx context.Context, args ...string) (string, error) {
	return Output(ctx, s.ctrEnv(), "ctr", args...)
}

// CtrCommand returns a command that runs ctr.
func (s *Stack) CtrCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	c, err := Command(ctx, "ctr", args...)
	if err != nil {
		return nil, err
	}
	c.Env = append(c.Env, s.ctrEnv()...)
	return c, nil
}

// ctrEnv is how clients of containerd reach the stack's.
func (s *Stack) ctrEnv() []string {
	return []string{"CONTAINERD_ADDRESS=" + s.Socket, "CONTAINERD_NAMESPACE=" + s.Namespace}
}

// Snapctl runs snapctl and returns its stdout.
func (s *Stack) Snapctl(ctx context.Context, args ...string) (string, error) {
	return Output(ctx, s.SnapctlEnv(), "snapctl", args...)
}

// SnapctlEnv is what snapctl needs in its environment to work with the stack.
func (s *Stack) SnapctlEnv() []string {
	return append(s.ctrEnv(), "REMORA_ADDRESS="+s.Remora, "XDG_CACHE_HOME="+filepath.Join(s.Dir, "snapctl-cache"))
}

// Status is what tests read of `snapctl status --json`, by its documented names.
type Status struct {
	Backend struct{ Name, Reason string }
	Cache   struct{ Bytes, Limit, Pinned int64 }
	Layers  []LayerStatus
	Broken  []struct{ Container, Snapshot, Mounted, Reason string }
	Holder  struct{ PID int }
	Waiting []struct {
		PID                                       int
		Command, Container, Image, Digest, Reason string
		Seconds                                   float64
	}
}

// LayerStatus is one of Status.Layers.
type LayerStatus struct {
	Digest       string
	Image        string
	Format       string
	Backend      string
	State        string
	Reason       string
	Verified     bool
	PresentBytes int64 `json:"present_bytes"`
	TotalBytes   int64 `json:"total_bytes"`
	FetchedBytes int64 `json:"fetched_bytes"`
	ReadBytes    int64 `json:"read_bytes"`

	PrefetchedBytes   int64   `json:"prefetched_bytes"`
	PrefetchUsedBytes int64   `json:"prefetch_used_bytes"`
	DemandBytes       int64   `json:"demand_bytes"`
	Waits             int     `json:"waits"`
	WaitSeconds       float64 `json:"wait_seconds"`
}

// Status returns what `snapctl status --json` says.
func (s *Stack) Status(ctx context.Context) (*Status, error) {
	out, err := s.Snapctl(ctx, "--json", "status")
	if err != nil {
		return nil, err
	}
	st := new(Status)
	return st, json.Unmarshal([]byte(out), st)
}

// Ref names an image in the stack's registry.
func (s *Stack) Ref(name string) string { return s.Addr + "/" + name }

// PullOrdinary pulls by containerd alone.
func (s *Stack) PullOrdinary(ctx context.Context, ref, snapshotter string) error {
	_, err := s.Ctr(ctx, "images", "pull", "--local", "--hosts-dir", s.HostsDir, "--snapshotter", snapshotter, ref)
	return err
}

// RunProgram runs a program's container and returns with the line that says that it works. end
// waits for the container's end.
func (s *Stack) RunProgram(ctx context.Context, ref, snapshotter string, p Program) (end func() error, err error) {
	c, err := s.CtrCommand(ctx, append([]string{"run", "--rm", "--snapshotter", snapshotter, ref, p.Name}, p.Args...)...)
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		return nil, err
	}
	in := bufio.NewScanner(out)
	for in.Scan() {
		if strings.Contains(in.Text(), p.Want) {
			return func() error {
				_, err := io.Copy(io.Discard, out)
				return errors.Join(err, c.Wait())
			}, nil
		}
	}
	return nil, fmt.Errorf("%s did not print %q: %v\n%s", p.Name, p.Want, c.Wait(), stderr.String())
}

// Push copies an OCI layout into the registry.
func (s *Stack) Push(ctx context.Context, layout, tag, name string) error {
	args := []string{"--insecure-policy", "copy", "--dest-tls-verify=false"}
	if s.opts.Auth {
		args = append(args, "--dest-creds", User+":"+Password)
	}
	_, err := Output(ctx, nil, "skopeo", append(args, "oci:"+layout+":"+tag, "docker://"+s.Ref(name))...)
	return err
}

// StopRegistry ends the registry.
func (s *Stack) StopRegistry() error {
	err := s.registry.Stop(syscall.SIGTERM)
	s.registry = nil
	return err
}
