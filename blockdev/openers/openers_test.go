package openers_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/remora-storage/remora/blockdev/openers"
)

// TestOf: a process that has a device open is named, and no other; this one never is.
func TestOf(t *testing.T) {
	const dev = "/dev/full" // which nobody has open
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := openers.Of(dev)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sleep", "1000")
	c.Stdin = f
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	o, err := openers.Of(dev)
	want := fmt.Sprintf("process %d (sleep)", c.Process.Pid)
	if err != nil || len(o.Processes) != len(before.Processes)+1 || !strings.Contains(o.String(), want) || o.None() ||
		o.Swap || len(o.Devices) > 0 {
		t.Errorf("got %+v, %v; want %s beside %v", o, err, want, before)
	}
	if others := o.Others(); strings.Contains(others.String(), want) || len(others.Processes) != len(before.Processes) {
		t.Errorf("%v has others in it, %v beside what this process has started", others, before)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed
	if o, err := openers.Of(dev); err != nil || strings.Contains(o.String(), want) {
		t.Errorf("when it has ended: %v, %v", o, err)
	}
	if _, err := openers.Of("/dev/nonesuch"); err == nil {
		t.Error("a device that is not there has openers")
	}
}
