package heap_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/heap"
)

// failures is a test that takes notes of what it should fail for.
type failures struct {
	testing.TB
	said []string
}

func (f *failures) Helper() {}

func (f *failures) Errorf(format string, _ ...any) { f.said = append(f.said, format) }

var kept []byte // so that what is allocated escapes

// TestCosts: each thing that takes more than it may is named, measured in either way, and nothing else is.
func TestCosts(t *testing.T) {
	most := heap.Cost{Memory: 16 << 20, CPU: 200 * time.Millisecond, Written: 1 << 20}
	file := filepath.Join(t.TempDir(), "written")
	for name, c := range map[string]struct {
		do   func() int64
		says string
	}{
		"little": {func() int64 { kept = make([]byte, 1<<20); return 1 << 20 }, ""},
		"memory": {func() int64 { kept = make([]byte, 32<<20+runtime.GOMAXPROCS(0)<<21); return 0 }, "of memory"},
		"processor time": {func() int64 {
			for spent := time.Duration(0); spent < 2*most.CPU; {
				spent += heap.CPU(func() {
					for range 10_000_000 {
					}
				})
			}
			return 0
		}, "of processor time"},
		"told to be written": {func() int64 { return 2 << 20 }, "written"},
		"written": {func() int64 {
			if err := os.WriteFile(file, make([]byte, 2<<20), 0o600); err != nil {
				t.Error(err)
			}
			return 0
		}, "written"},
	} {
		for how, check := range map[string]func(heap.Cost, testing.TB, func() int64) heap.Cost{
			"allocated": heap.Cost.Allocates, "peak": heap.Cost.Peaks,
		} {
			var f failures
			took := check(most, &f, c.do)
			if len(f.said) > 1 || strings.Join(f.said, "") == "" != (c.says == "") || !strings.Contains(strings.Join(f.said, ""), c.says) {
				t.Errorf("%s, %s: %+v, said %q", name, how, took, f.said)
			}
		}
	}
}
