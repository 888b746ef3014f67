package blockdev_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/blockdev"
)

// TestLockFile: a lock that a program keeps that the one before was just starting is waited for, and one that somebody
// has for good is refused.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	leaveTo := func(seconds string) *exec.Cmd {
		t.Helper()
		f, err := blockdev.LockFile(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c := exec.Command("sleep", seconds)
		c.ExtraFiles = []*os.File{f}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := leaveTo("0.5")
	f, err := blockdev.LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	c = leaveTo("60")
	defer func() { _, _ = c.Process.Kill(), c.Wait() }()
	if _, err := blockdev.LockFile(path); !errors.Is(err, blockdev.ErrLocked) {
		t.Errorf("locked twice: %v", err)
	}
}
