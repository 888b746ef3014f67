package testbed

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// New starts a stack that ends with the test, and must leave nothing but a root that is whole, and stores that are.
func New(t *testing.T, opts Options) *Stack {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	s, err := NewStack(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			p, _ := os.ReadFile(s.RemoradLog())
			t.Logf("remorad's log ends:\n%s", p[max(0, len(p)-20000):])
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left, err := MountsUnder(dir); err != nil || len(left) > 0 {
			t.Errorf("mounts left: %v, %v", left, err)
		}
		if err := walkRoot(s.Root); err != nil {
			t.Errorf("remorad left: %v", err)
		}
		if err := s.stores.walk(s.opts.Config); err != nil {
			t.Errorf("volumes are left in %v", err)
		}
	})
	return s
}

// NeedRoot skips the tests of whole systems where only fast tests are wanted.
func NeedRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts containerd and mounts: not a fast test")
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
}

// Must ends the test if there is an error.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// WaitFor waits for what must come. Its patience says nothing of how fast that should be.
func WaitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 2400 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

// Rounds is how often a test that goes on for ever is done: few times in CI, many with make soak.
func Rounds(ci, soak int) int {
	if os.Getenv("REMORA_SOAK") != "" {
		return soak
	}
	return ci
}

// Tool runs a foreign client, which must succeed.
func Tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := Output(ctx, nil, name, args...)
	// mkfs.btrfs looks at all loop devices that are mounted anywhere, and gives up, before it writes, if another test's ends meanwhile.
	for err != nil && ctx.Err() == nil && strings.Contains(out+err.Error(), "cannot check mount status") {
		out, err = Output(ctx, nil, name, args...)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}
