package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/cmdtest"
)

// TestHolderNone: without a holder nothing is kept.
func TestHolderNone(t *testing.T) {
	h, kept, err := connectHolder(flags{root: t.TempDir(), holder: holderNone}, discard())
	if err != nil || kept != nil || h.pid() != 0 || h.keeper() != nil || h.close() != nil {
		t.Errorf("%+v, %v, %v", h, kept, err)
	}
	if _, _, err := connectHolder(flags{holder: "me"}, discard()); cli.Code(err) != 2 {
		t.Errorf("a holder that is none: %v", err)
	}
}

// TestHold serves a root for as long as remorad is there, and ends with it: nothing is left to hold.
func TestHold(t *testing.T) {
	t.Setenv("INVOCATION_ID", "systemd has given it a control group")
	root := filepath.Join(shortDir(t), "root")
	log := new(cmdtest.Output)
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- hold(ctx, flags{root: root, logLevel: "debug"}, log) }()
	h, kept, err := connectHolder(flags{root: root, holder: holderExternal}, discard())
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	stop() // a signal does not end it
	if len(kept) != 0 || h.pid() != os.Getpid() || h.keeper() == nil {
		t.Errorf("it keeps %v, as %d", kept, h.pid())
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the end: %v\n%s", err, log)
	}
}

// TestHolderAuto starts a holder of its own, in another process.
func TestHolderAuto(t *testing.T) {
	t.Setenv("INVOCATION_ID", "x")
	root := shortDir(t)
	h, _, err := connectHolder(flags{root: root, holder: holderAuto}, discard())
	if err != nil {
		p, _ := os.ReadFile(filepath.Join(root, holderLog)) // for people
		t.Fatalf("%v\n%s", err, p)
	}
	pid := h.pid()
	if pid == 0 || pid == os.Getpid() {
		t.Errorf("the holder is process %d", pid)
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
	waitFor(t, "the holder ends when nothing is left to hold", func() bool {
		p, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(p), ") Z ")
	})
}

// TestChildrenInherit: the holder has nothing open of what remorad was started with.
func TestChildrenInherit(t *testing.T) {
	root := shortDir(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	c := exec.Command(os.Args[0], "start-holder", root) // see TestMain
	c.Env = append(os.Environ(), "INVOCATION_ID=x")
	c.Stderr, c.ExtraFiles = os.Stderr, []*os.File{write}
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := read.Read(make([]byte, 1)); ended <- err }()
	h, _, err := connectHolder(flags{root: root, holder: holderExternal}, discard())
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("whoever waits for the pipe's end waits for the holder's")
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
}

// TestControlGroups: what cannot be entered is said.
func TestControlGroups(t *testing.T) {
	if err := enterGroup(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a group that is not there was entered")
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
	if !inPod() {
		t.Error("in Kubernetes, and not in a pod")
	}
}
