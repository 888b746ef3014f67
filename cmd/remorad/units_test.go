package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestUnitsAreHardened: systemd's own measure of what a service that was taken over could do does not rise, and systemd knows
// every directive where it stands. conformance/images runs both programs under these units.
func TestUnitsAreHardened(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed: apt-get install systemd")
	}
	for unit, most := range map[string]string{"remorad.service": "54", "remora-holder.service": "29"} { // in tenths
		out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+most, unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
		mustKnowUnit(t, unit)
	}
}

// TestUnitsAreOrdered: systemd knows all of the units, which may be started together, and stops them around mounts: those of fstab that
// are marked _netdev before remora-drain.service, and that before remorad and its holder.
func TestUnitsAreOrdered(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed: apt-get install systemd")
	}
	mustKnowUnit(t, "remora-drain.service", "remorad.service", "remora-holder.service")
	for unit, lines := range map[string][]string{
		"remora-drain.service":  {"After=remorad.service remora-holder.service", "Before=remote-fs-pre.target", "ExecStop="},
		"remorad.service":       {"Before=containerd.service remote-fs-pre.target", "After=network-online.target", "Also=remora-drain.service"},
		"remora-holder.service": {"Before=remote-fs-pre.target"},
	} {
		p, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			if !strings.Contains(string(p), "\n"+line) {
				t.Errorf("%s has no %s", unit, line)
			}
		}
	}
}

// mustKnowUnit fails for what systemd does not know of units, or finds wrong between them.
func mustKnowUnit(t *testing.T, units ...string) {
	t.Helper()
	// It complains that the programs are not installed, and of what releases before 254 do not know.
	out, _ := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		known := strings.Contains(line, "is not executable") || strings.Contains(line, "FileDescriptorStorePreserve")
		if !known && (strings.Contains(line, "remora") || strings.Contains(line, "cycle")) {
			t.Errorf("%s", line)
		}
	}
}

// TestUnitsAreSparedWithinALimit: where systemd has the kernel spare a program, it limits the program's memory as well.
func TestUnitsAreSparedWithinALimit(t *testing.T) {
	for _, unit := range []string{"remorad.service", "remora-holder.service"} {
		p, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(p); !strings.Contains(text, fmt.Sprintf("\nOOMScoreAdjust=%d\n", spared)) || !strings.Contains(text, "\nMemoryMax=") {
			t.Errorf("%s: spared without a limit, or not spared", unit)
		}
	}
}
