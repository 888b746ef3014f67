package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
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
	beside   time.Duration // of one of what a volume is beside
	backings []string
	only     string // block device measurements whose name has it
	before   string // the directory of other programs of ours, that these are measured beside
	config   string // of remorad, for the cold starts

	programs []testbed.Program // of the cold starts
}

func main() {
	o := options{backings: []string{"memory", "file"}}
	flag.IntVar(&o.rounds, "rounds", 3, "how often each thing is measured, in turn")
	flag.DurationVar(&o.rtt, "rtt", 20*time.Millisecond, "the link's round trip")
	flag.Int64Var(&o.mbit, "mbit", 1000, "the link's rate, Mbit/s")
	flag.DurationVar(&o.beside, "beside", 0, "how long what a volume is compared with is under load for one number; 0: as long as the volume")
	flag.DurationVar(&o.during, "during", time.Second, "how long a block device is under load for one number")
	flag.StringVar(&o.before, "before", "", "measure beside the programs in `DIR`, of an earlier state: the benchmark \"against\"")
	flag.StringVar(&o.only, "only", "", "measure block devices only where the row's name contains this; of \"against\": starts or NBD")
	flag.Func("backing", "measure the NBD server on this only: memory or file", func(v string) error { o.backings = []string{v}; return nil })
	backend := flag.String("backend", "auto", "[mount] backend of the cold starts")
	programs := flag.String("programs", "", "programs of the cold starts, comma-separated; all if empty")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this process to `FILE`")
	flag.Parse()
	for _, p := range testbed.BenchPrograms {
		if *programs == "" || slices.Contains(strings.Split(*programs, ","), p.Name) {
			o.programs = append(o.programs, p)
		}
	}
	o.config = fmt.Sprintf("[mount]\nbackend = %q\n", *backend)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	debug.SetGCPercent(50) // as remorad does
	err := profiled(*profile, func() error { return run(ctx, o, flag.Args()) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// profiled calls f, and writes a profile of it to a file if that has a name.
func profiled(name string, f func() error) error {
	if name == "" {
		return f()
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return err
	}
	err = f()
	pprof.StopCPUProfile()
	return errors.Join(err, out.Close())
}

func run(ctx context.Context, o options, which []string) (err error) {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	if len(which) == 0 {
		which = names
	}
	if o.work, err = os.MkdirTemp("", "remora-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.work)
	for _, name := range which {
		i := slices.Index(names, name)
		if i < 0 {
			return fmt.Errorf("no benchmark %q: want one of %s", name, strings.Join(names, ", "))
		}
		if err := parts[i].measure(ctx, o); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// parts are all benchmarks, in the order in which they run.
var parts = []struct {
	name    string
	measure func(context.Context, options) error
}{
	{"coldstart", coldStart}, {"rebuilt", rebuilt}, {"import", imports}, {"convert", conversions}, {"complete", complete},
	{"present", present}, {"pause", pause}, {"layers", layers}, {"update", update}, {"memory", memory}, {"nbd", nbdBench},
	{"disk", disks}, {"volume", volumes}, {"neighbours", neighbours}, {"trust", trust}, {"against", against},
}

// median of some measurements.
func median[T cmp.Ordered](all []T) T {
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

// dropCaches empties the page, dentry and inode caches.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
