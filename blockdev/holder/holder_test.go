package holder_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/holder"
)

// A test that wants a holder's process starts itself with this variable, which names the root.
const rootVariable, idleVariable = "REMORA_TEST_HOLDER", "REMORA_TEST_HOLDER_IDLE"

func TestMain(m *testing.M) {
	if root := os.Getenv(rootVariable); root != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		idle, _ := time.ParseDuration(os.Getenv(idleVariable))
		err := holder.Serve(ctx, holder.Options{Root: root, Text: "test", Idle: idle, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		stop()
		if err != nil {
			slog.Error("holder", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// starter starts holders' processes and kills them.
type starter struct {
	t    *testing.T
	root string
	idle string // for how long it waits, "" for its own

	mu  sync.Mutex
	cmd *exec.Cmd
}

func (s *starter) start() error {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), rootVariable+"="+s.root, idleVariable+"="+s.idle)
	c.Stderr = os.Stderr
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd = c
	return c.Start()
}

func (s *starter) kill() {
	s.mu.Lock()
	c := s.cmd
	s.mu.Unlock()
	_ = c.Process.Kill()
	_ = c.Wait()
}

func (s *starter) wait(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	c := s.cmd
	s.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the holder does not end")
		_ = c.Process.Kill()
		<-done
	}
}

func connect(t *testing.T, s *starter) (*holder.Client, map[string][]*os.File) {
	t.Helper()
	c, kept, err := holder.Connect(holder.ClientOptions{Root: s.root, Start: s.start, Text: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return c, kept
}

// long makes a root whose path does not fit a socket's address.
func long(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func file(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	p, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// TestKeepsOverTheDaemonsLife: what one client put, the next one gets.
func TestKeepsOverTheDaemonsLife(t *testing.T) {
	s := &starter{t: t, root: long(t)}
	c, kept := connect(t, s)
	if len(kept) != 0 {
		t.Errorf("a new holder has %v", kept)
	}
	pid := c.PID()
	for name, files := range map[string][]*os.File{"one": {file(t, "1")}, "two": {file(t, "2a"), file(t, "2b")}, "gone": {file(t, "3")}} {
		if err := c.Put(name, files...); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Put("one", file(t, "1 again")); err != nil {
		t.Fatal(err)
	}
	if err := c.Drop("gone"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, kept = connect(t, s)
	if c.PID() != pid {
		t.Errorf("another holder: %d, was %d", c.PID(), pid)
	}
	if len(kept) != 2 || len(kept["one"]) != 1 || len(kept["two"]) != 2 {
		t.Fatalf("kept %v", kept)
	}
	if got := content(t, kept["one"][0]) + content(t, kept["two"][0]) + content(t, kept["two"][1]); got != "1 again2a2b" {
		t.Errorf("got %q", got)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	s.wait(t)
}

// TestHolderKilled: a new holder gets everything, whatever was under way.
func TestHolderKilled(t *testing.T) {
	s := &starter{t: t, root: t.TempDir()}
	c, _ := connect(t, s)
	if err := c.Put("before", file(t, "before")); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		pid := c.PID()
		s.kill()
		if err := c.Put("after", file(t, "after")); err != nil { // while nobody is there
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); c.PID() == pid && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, kept := connect(t, s)
	if len(kept["before"]) != 1 || len(kept["after"]) != 1 {
		t.Errorf("kept %v", kept)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	s.wait(t)
}

// TestClosedAfterHolderKilled: a daemon that ends while its holder is dead, or has been given a part
// only, leaves everything with another.
func TestClosedAfterHolderKilled(t *testing.T) {
	s := &starter{t: t, root: t.TempDir()}
	const names = 20
	c, _ := connect(t, s)
	for i := range names {
		if err := c.Put(fmt.Sprint(i), file(t, "kept")); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 30 {
		s.kill()
		time.Sleep(time.Duration(round) * 2 * time.Millisecond) // not found out yet, half given, all given
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		var kept map[string][]*os.File
		c, kept = connect(t, s)
		if len(kept) != names {
			t.Fatalf("round %d: %d names of %d kept", round, len(kept), names)
		}
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	s.wait(t)
}

// TestOrphan: a holder whose root has gone ends by itself.
func TestOrphan(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	s := &starter{t: t, root: root}
	c, _ := connect(t, s)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	s.wait(t)
}

// TestOneHolder: a second one for the same root is refused.
func TestOneHolder(t *testing.T) {
	s := &starter{t: t, root: t.TempDir()}
	c, _ := connect(t, s)
	err := holder.Serve(t.Context(), holder.Options{Root: s.root, Text: "second", Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("second holder: %v", err)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	s.wait(t)
}

// TestOtherUsers: the holder is listened to by the mode of its socket and by the kernel's word of who connects: a process of another user
// gets no answer, whatever it may do with files. It takes the process's word for nothing.
func TestOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	s := &starter{t: t, root: t.TempDir()}
	c, _ := connect(t, s)
	path := filepath.Join(s.root, "holder.sock")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	ask := func(user int) (answer string, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()                                                   // and never unlocked: the thread ends with what it has become
			if err = unix.Prctl(unix.PR_SET_SECUREBITS, 1<<2, 0, 0, 0); err != nil { // keep all capabilities: SECBIT_NO_SETUID_FIXUP
				return
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(user), uintptr(user), uintptr(user)); errno != 0 {
				err = errno
				return
			}
			var fd int
			if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
				return
			}
			defer unix.Close(fd)
			if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				return
			}
			_, _ = unix.Write(fd, []byte("RMHD\x63\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")) // a version that is not known
			p := make([]byte, 4096)
			n, _ := unix.Read(fd, p) // fails if the connection was closed before it was read from
			answer = string(p[:max(n, 0)])
		}()
		<-done
		return answer, err
	}
	if answer, err := ask(0); err != nil || answer == "" {
		t.Errorf("root is answered %q, %v", answer, err)
	}
	if answer, err := ask(12345); err != nil || answer != "" {
		t.Errorf("another user is answered %q, %v", answer, err)
	}
	if err := c.Put("more", file(t, "more")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	s.wait(t)
}

// TestStrangers: packets that are not the protocol's, and of versions that are not known, neither
// stop the holder nor are obeyed.
func TestStrangers(t *testing.T) {
	s := &starter{t: t, root: t.TempDir()}
	c, _ := connect(t, s)
	if err := c.Put("mine", file(t, "mine")); err != nil {
		t.Fatal(err)
	}
	quit := []byte("RMHD\x01\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	future := []byte("RMHD\x63\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for name, packet := range map[string][]byte{
		"nonsense": []byte("GET / HTTP/1.1"), "no hello": quit, "another version": future, "empty": {0},
	} {
		conn, err := net.Dial("unixpacket", filepath.Join(s.root, "holder.sock"))
		if err != nil {
			t.Fatal(name, err)
		}
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(name, err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4096)
		n, _ := conn.Read(p) // closed, or told why
		if name == "another version" && !strings.Contains(string(p[:n]), "detach --all") {
			t.Errorf("%s: %q says nothing of what to do", name, p[:n])
		}
		conn.Close()
	}
	if err := c.Put("more", file(t, "more")); err != nil {
		t.Errorf("after strangers: %v", err)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	s.wait(t)
}

// TestFDStore: systemd's descriptor store gets everything, and a holder that it starts again has it.
func TestFDStore(t *testing.T) {
	root := t.TempDir()
	socket := filepath.Join(root, "notify.sock")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	s := &starter{t: t, root: root}
	c, _ := connect(t, s)
	if err := c.Put("group/1", file(t, "one"), file(t, "two")); err != nil {
		t.Fatal(err)
	}
	stored := map[string]*os.File{} // what systemd has
	for len(stored) < 2 {
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		p, oob := make([]byte, 4096), make([]byte, 128)
		n, oobn, _, _, err := l.ReadMsgUnix(p, oob)
		if err != nil {
			t.Fatal(err)
		}
		_, name, ok := strings.Cut(string(p[:n]), "FDNAME=")
		if !ok || !strings.HasPrefix(string(p[:n]), "FDSTORE=1") {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			t.Fatal(err)
		}
		stored[name] = os.NewFile(uintptr(fds[0]), name)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	s.kill()
	// What systemd does: descriptors from 3 on, their names, and the process that they are for.
	var names []string
	again := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	for name, f := range stored {
		names = append(names, name)
		again.ExtraFiles = append(again.ExtraFiles, f)
	}
	again.Env = append(os.Environ(), rootVariable+"="+root, "LISTEN_FDS=2", "LISTEN_FDNAMES="+strings.Join(names, ":"))
	again.Stderr = os.Stderr
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Process.Signal(syscall.SIGKILL); _ = again.Wait() }()
	c, kept, err := holder.Connect(holder.ClientOptions{Root: root, Text: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if len(kept["group/1"]) != 2 || content(t, kept["group/1"][0]) != "one" || content(t, kept["group/1"][1]) != "two" {
		t.Errorf("kept %v", kept)
	}
}

// TestEndsWhenNotNeeded: a holder whose daemon is dead ends when it is asked to, or after a while, if nothing depends on what it keeps.
func TestEndsWhenNotNeeded(t *testing.T) {
	for name, c := range map[string]struct {
		item, asked bool
	}{
		"nothing, asked": {false, true}, "a memory, asked": {true, true}, "a memory, after a while": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &starter{t: t, root: t.TempDir(), idle: "1ms"}
			if c.asked {
				s.idle = "1h"
			}
			daemon, _ := connect(t, s)
			if c.asked { // while the daemon is there it is not the time
				if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			if c.item {
				fd, err := unix.MemfdCreate("slots", unix.MFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				f := os.NewFile(uintptr(fd), "slots")
				defer f.Close()
				if err := daemon.Put("slots", f); err != nil {
					t.Fatal(err)
				}
			}
			if err := daemon.Close(); err != nil {
				t.Fatal(err)
			}
			s.wait(t)
		})
	}
}
