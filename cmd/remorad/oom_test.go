package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cmd/internal/cmdtest"
)

// TestGroupLimit: the least limit on the way to the top counts, of either version of control groups; in a container, whose own group
// is the top, as well.
func TestGroupLimit(t *testing.T) {
	top := t.TempDir()
	put := func(name, limit string) {
		name = filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(limit+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("two/system.slice/remorad.service/memory.max", "1000")
	put("two/system.slice/free/memory.max", "max")
	put("two/pods/memory.max", "2000")
	put("two/pods/one/memory.max", "3000")
	put("two/pods/two/memory.max", "max")
	put("pod/memory.max", "4000")
	put("one/memory.limit_in_bytes", "9223372036854771712")
	put("one/pods/memory.limit_in_bytes", "5000")
	put("one/pods/one/memory.limit_in_bytes", "9223372036854771712")
	two := mounts.Mount{Dir: top + "/two", Type: "cgroup2", Options: "rw,nsdelegate"}
	pod := mounts.Mount{Dir: top + "/pod", Type: "cgroup2", Options: "rw"}
	one := mounts.Mount{Dir: top + "/one", Type: "cgroup", Options: "rw,memory"}
	cpu := mounts.Mount{Dir: top + "/two", Type: "cgroup", Options: "rw,cpu,cpuacct"}
	const none = math.MaxInt64
	for name, c := range map[string]struct {
		groups  string
		mounted []mounts.Mount
		want    int64
	}{
		"its own":                        {"0::/system.slice/remorad.service", []mounts.Mount{two}, 1000},
		"none":                           {"0::/system.slice/free", []mounts.Mount{two}, none},
		"at the top":                     {"0::/", []mounts.Mount{two}, none},
		"above a larger one":             {"0::/pods/one", []mounts.Mount{two}, 2000},
		"above none":                     {"0::/pods/two", []mounts.Mount{two}, 2000},
		"in a container":                 {"0::/", []mounts.Mount{pod}, 4000},
		"without a namespace of its own": {"0::/pods/one", []mounts.Mount{pod}, 4000},
		"outside of its namespace":       {"0::/../other", []mounts.Mount{pod}, 4000},
		"not mounted":                    {"0::/pods/one", nil, none},
		"version 1":                      {"4:memory:/pods/one\n0::/", []mounts.Mount{cpu, one, two}, 5000},
		"version 1, no limit":            {"4:memory:/\n0::/", []mounts.Mount{one}, 9223372036854771712},
		"version 1, others' groups":      {"4:cpu,cpuacct:/pods\n5:memory:/", []mounts.Mount{cpu}, none},
		"what is no list":                {"memory\n\n:", []mounts.Mount{one, two}, none},
	} {
		if got := groupLimit(c.groups+"\n", c.mounted); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// limitedGroup makes a control group that may use some memory, and returns the file that processes enter it by.
func limitedGroup(t *testing.T) (procs string) {
	t.Helper()
	for dir, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"} {
		dir = filepath.Join(dir, fmt.Sprintf("remora-oom-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() { waitFor(t, "the control group to be empty", func() bool { return os.Remove(dir) == nil }) })
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
		if err != nil {
			continue // control groups of the other version
		}
		_, err = f.WriteString(strconv.Itoa(256 << 20))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "cgroup.procs")
	}
	t.Skip("no control group with a limit of memory can be made here")
	return ""
}

// TestSparedWithinALimit: a process is spared only where a control group limits its memory.
func TestSparedWithinALimit(t *testing.T) {
	for _, c := range []struct {
		score   int
		limited bool
		want    int
	}{
		{0, false, 0}, {-5, false, -5}, {5, false, 5}, {-1000, false, -1000}, {spared, false, 0}, // inherited
		{0, true, spared}, {-5, true, spared}, {5, true, spared}, {-1000, true, -1000}, {spared, true, spared},
	} {
		if got := wantedScore(c.score, c.limited); got != c.want {
			t.Errorf("from %d, limited %v: %d, want %d", c.score, c.limited, got, c.want)
		}
	}
	if _, limited := groupMemory(); limited {
		t.Skip("this test has a limit itself")
	}
	t.Setenv("INVOCATION_ID", "x") // the holder stays in the group
	const says = "no control group limits what it takes"
	if log, score := heldIn(t, ""); score != 0 || !strings.Contains(log, says) {
		t.Errorf("without a limit: %d, and it says\n%s", score, log)
	}
	procs := limitedGroup(t)
	log, score := heldIn(t, procs)
	if allowed := !strings.Contains(log, "permission denied"); strings.Contains(log, says) || score != spared && allowed {
		t.Errorf("with a limit: %d, and it says\n%s", score, log)
	} else if !allowed {
		t.Log("no process can be spared here: CAP_SYS_RESOURCE is missing")
	}
}

// heldIn runs a holder, in a control group if one is named, and returns its log and its score.
func heldIn(t *testing.T, procs string) (log string, score int) {
	t.Helper()
	root, enter := shortDir(t), "exec "
	if procs != "" {
		enter = "echo $$ > " + procs + " && exec "
	}
	var out cmdtest.Output
	c := exec.CommandContext(t.Context(), "sh", "-c", enter+"/proc/"+strconv.Itoa(os.Getpid())+"/exe holder --log-level debug --root "+root)
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	h, _, err := connectHolder(flags{root: root, holder: holderExternal}, discard())
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", h.pid()))
	if err != nil {
		t.Fatal(err)
	}
	if score, err = strconv.Atoi(strings.TrimSpace(string(p))); err != nil {
		t.Fatal(err)
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	return out.String(), score
}
