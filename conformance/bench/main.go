// Command bench measures what docs/performance.md shows: cold starts beside containerd's own
// snapshotters, complete layers beside a local EROFS file, and memory.
//
//	go run ./conformance/bench [-rounds 3] [-rtt 20ms] [-mbit 1000] [coldstart|rebuilt|import|convert|complete|present|pause|layers|update|memory|nbd ...]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

type options struct {
	rounds   int
	rtt      time.Duration
	mbit     int64
	work     string
	during   time.Duration // of one measurement under load
	backings []string
	only     string // block device measurements whose name has it
	config   string // of remorad, for the cold starts

	programs []testbed.Program // of the cold starts
}

func main() {
	o := options{backings: []string{"memory", "file"}}
	flag.IntVar(&o.rounds, "rounds", 3, "how often each thing is measured, in turn")
	flag.DurationVar(&o.rtt, "rtt", 20*time.Millisecond, "the link's round trip")
	flag.Int64Var(&o.mbit, "mbit", 1000, "the link's rate, Mbit/s")
	flag.DurationVar(&o.during, "during", time.Second, "how long a block device is under load for one number")
	flag.StringVar(&o.only, "only", "", "measure block devices only where the row's name contains this")
	flag.Func("backing", "measure the NBD server on this only: memory or file", func(v string) error { o.backings = []string{v}; return nil })
	backend := flag.String("backend", "auto", "[mount] backend of the cold starts")
	programs := flag.String("programs", "", "programs of the cold starts, comma-separated; all if empty")
	flag.Parse()
	for _, p := range testbed.BenchPrograms {
		if *programs == "" || slices.Contains(strings.Split(*programs, ","), p.Name) {
			o.programs = append(o.programs, p)
		}
	}
	o.config = fmt.Sprintf("[mount]\nbackend = %q\n", *backend)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, which []string) (err error) {
	if len(which) == 0 {
		which = []string{"coldstart", "rebuilt", "import", "convert", "complete", "present", "pause", "layers", "update", "memory", "nbd"}
	}
	if o.work, err = os.MkdirTemp("", "remora-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.work)
	for _, name := range which {
		parts := map[string]func(context.Context, options) error{
			"coldstart": coldStart, "rebuilt": rebuilt, "import": imports, "convert": conversions, "complete": complete, "present": present, "pause": pause, "layers": layers, "update": update, "memory": memory, "nbd": nbdBench,
		}
		part, ok := parts[name]
		if !ok {
			return fmt.Errorf("no benchmark %q: want coldstart, rebuilt, import, convert, complete, present, pause, layers, update, memory or nbd", name)
		}
		if err := part(ctx, o); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// median of some durations.
func median(all []time.Duration) time.Duration {
	sorted := append([]time.Duration(nil), all...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	return sorted[len(sorted)/2]
}

// dropCaches empties the page, dentry and inode caches.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
