package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Repo returns the repository's root: where go.mod is.
func Repo() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	panic("testbed: not in the repository")
}

// Work returns the directory for what is kept between runs.
func Work() string {
	if dir := os.Getenv("REMORA_WORK"); dir != "" {
		return dir
	}
	return filepath.Join(Repo(), ".work")
}

// callers are variables by which a user tells the programs under test where things are. Tests say so themselves, so that their result does
// not depend on who runs them.
var callers = []string{"CONTAINERD_", "CONTAINER_", "SNAPCTL_", "REMORA_", "NERDCTL_", "DOCKER_", "REGISTRY_", "XDG_",
	"AWS_", "MINIO_", "PG", "NBD_", "NOTIFY_SOCKET", "LISTEN_", "INVOCATION_ID", "LC_", "LANG",
	"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy", "GODEBUG", "GOMAXPROCS"}

// Env is the environment with our programs and the tools first in PATH, and without the caller's settings for them.
func Env() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return slices.ContainsFunc(callers, func(prefix string) bool { return strings.HasPrefix(kv, prefix) })
	})
	return append(env, "PATH="+searchPath())
}

// searchPath is Env's PATH.
func searchPath() string {
	return filepath.Join(Repo(), "bin") + ":" + filepath.Join(Work(), "tools") + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"
}

// lookPath finds a program as Env's PATH has it.
func lookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range filepath.SplitList(searchPath()) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && !st.IsDir() {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: run make tools", name)
}

// oneEach has each program but remorad, which is what is tested, run its goroutines on one processor. Where more tests run side by side
// than the machine has processors, the threads of containerd, registries and clients otherwise wake each other for nothing: a fifth of the
// processor's time. What is measured runs without.
var oneEach = os.Getenv("REMORA_ONE_EACH") != ""

// Command returns a command with Env.
func Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	p, err := lookPath(name)
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, p, args...)
	c.Env = Env()
	if oneEach && filepath.Base(p) != "remorad" {
		c.Env = append(c.Env, "GOMAXPROCS=1")
	}
	return c, nil
}

// Output runs a command and returns what it printed on stdout. An error holds its stderr.
func Output(ctx context.Context, env []string, name string, args ...string) (string, error) {
	c, err := Command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	c.Env = append(c.Env, env...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// A Process is a daemon with its log in a file.
type Process struct {
	Cmd  *exec.Cmd
	Log  string
	done chan struct{}
	err  error
}

// Start starts a daemon and returns when ready says that it serves.
func Start(log string, ready func() bool, env []string, name string, args ...string) (*Process, error) {
	c, err := Command(context.Background(), name, args...)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c.Env = append(c.Env, env...)
	c.Stdout, c.Stderr = f, f
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &Process{Cmd: c, Log: log, done: make(chan struct{})}
	if err := c.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = c.Wait()
		close(p.done)
	}()
	for deadline := time.Now().Add(60 * time.Second); ; {
		if ready() {
			return p, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s ended before it served: %w\n%s", name, p.err, p.Tail())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.Stop(syscall.SIGKILL)
			return nil, fmt.Errorf("%s does not serve:\n%s", name, p.Tail())
		}
	}
}

// Tail returns the end of the log.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-8<<10):])
}

// Stop sends a signal and waits for the end. A daemon that does not end is killed.
func (p *Process) Stop(sig syscall.Signal) error {
	if p == nil {
		return nil
	}
	_ = p.Cmd.Process.Signal(sig) // it may have ended
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		_ = p.Cmd.Process.Signal(syscall.SIGQUIT) // a Go program says what it does
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			_ = p.Cmd.Process.Kill()
			<-p.done
		}
		return fmt.Errorf("%s did not end after %s; see %s", p.Cmd.Path, sig, p.keepLog())
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) && exit.ExitCode() > 0 {
		return fmt.Errorf("%s: %w\n%s", p.Cmd.Path, p.err, p.Tail())
	}
	return nil
}

// keepLog copies the log of a process that hung to where it stays for whoever looks into it.
func (p *Process) keepLog() string {
	dir := filepath.Join(Repo(), ".work", "hung")
	kept := filepath.Join(dir, filepath.Base(p.Cmd.Path)+"-"+strconv.Itoa(p.Cmd.Process.Pid)+".log")
	log, err := os.ReadFile(p.Log)
	if err != nil || os.MkdirAll(dir, 0o755) != nil || os.WriteFile(kept, log, 0o644) != nil {
		return p.Log
	}
	return kept
}

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
