package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/link"
)

// against measures starts, imports, remorad's memory and the NBD server beside other programs of ours, in turn: those of a state
// before, in the directory that -before names.
func against(ctx context.Context, o options) (err error) {
	if o.before == "" {
		fmt.Println("\nagainst: nothing to measure beside: see -before")
		return nil
	}
	a := &comparison{o: o, values: map[string][2][]float64{}}
	for i, dir := range []string{filepath.Join(testbed.Repo(), "bin"), o.before} {
		v := &version{dir: dir}
		a.versions[i] = v
		if v.s, v.k, err = benchStack(ctx, filepath.Join(o.work, fmt.Sprint("against", i)), o); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, v.s.Close(), v.k.Close()) }()
		// An earlier release need not read what a later one has written. No image is mounted then: what reads one whose remorad was
		// stopped, removing its directories too, waits for the next.
		if err := errors.Join(clean(ctx, v.s), v.s.StopRemorad(syscall.SIGTERM), os.RemoveAll(v.s.Root)); err != nil {
			return err
		}
		v.s.UsePrograms(filepath.Join(dir, "remorad"), filepath.Join(dir, "snapctl"))
		if err := v.s.StartRemorad(); err != nil {
			return err
		}
	}
	for name, measure := range map[string]func(context.Context) error{"starts": a.starts, "NBD": a.nbd} {
		if !strings.Contains(name, o.only) {
			continue
		}
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return a.print()
}

// A version of the programs, with a stack of its own.
type version struct {
	dir string
	s   *testbed.Stack
	k   *link.Link
}

type comparison struct {
	o        options
	versions [2]*version // now, and before
	names    []string
	values   map[string][2][]float64
}

func (a *comparison) note(name string, i int, value float64) {
	both, ok := a.values[name]
	if !ok {
		a.names = append(a.names, name)
	}
	both[i] = append(both[i], value)
	a.values[name] = both
}

// turn calls measure for both versions, every other round the second first.
func (a *comparison) turn(round int, measure func(i int, v *version) error) error {
	for k := range a.versions {
		i := (k + round) % 2
		if err := measure(i, a.versions[i]); err != nil {
			return err
		}
	}
	return nil
}

// starts measures cold starts, what an import takes, and remorad's memory in each round.
func (a *comparison) starts(ctx context.Context) error {
	for round := range a.o.rounds {
		for _, v := range a.versions {
			if err := forgetPeak(v.s.RemoradPID()); err != nil {
				return err
			}
		}
		for _, p := range a.o.programs {
			for _, w := range ways {
				if w.tag != "beside" && w.tag != "plain" && w.tag != "src" || w.snapshotter != "remora" {
					continue
				}
				if err := a.turn(round, func(i int, v *version) error { return a.start(ctx, i, v, w, p) }); err != nil {
					return err
				}
			}
		}
		if err := settle(); err != nil {
			return err
		}
		for i, v := range a.versions {
			peak, err := peakMemory(v.s.RemoradPID())
			if err != nil {
				return err
			}
			a.note("remorad's memory in a round, peak, MiB", i, float64(peak)/(1<<10))
		}
		fmt.Fprintf(os.Stderr, "round %d of %d done\n", round+1, a.o.rounds)
	}
	return nil
}

func (a *comparison) start(ctx context.Context, i int, v *version, w way, p testbed.Program) error {
	before, err := cpuOf(v.s.RemoradPID())
	if err != nil {
		return err
	}
	took, err := coldOnce(ctx, v.s, v.k, w, p)
	if err != nil {
		return err
	}
	a.note(fmt.Sprintf("%s, %s, s", p.Name, w.name), i, took.Seconds())
	if err := settle(); err != nil || w.tag != "src" {
		return err
	}
	time.Sleep(2 * time.Second) // the index, and what is synced
	after, err := cpuOf(v.s.RemoradPID())
	a.note(fmt.Sprintf("%s, import, processor, s", p.Name), i, (after - before).Seconds())
	return err
}

// nbd measures reads and writes of the NBD server on memory.
func (a *comparison) nbd(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var servers [2]*nbdServer
	defer func() {
		stop()
		for _, s := range servers {
			if s != nil && s.cmd != nil && s.cmd.Process != nil {
				_ = s.cmd.Wait() // told to stop
			}
		}
	}()
	for i, v := range a.versions {
		servers[i] = &nbdServer{name: v.dir, socket: filepath.Join(v.s.Dir, "nbd.sock")}
		servers[i].args = []string{filepath.Join(v.dir, "snapctl"), "dev", "serve", "--unix", servers[i].socket, "memory:1GiB"}
		if err := servers[i].start(ctx); err != nil {
			return err
		}
		if _, _, err := servers[i].load(nbdCell{1 << 20, 16, 1, true}, 2*time.Second); err != nil { // memory is taken then
			return err
		}
	}
	for round := range a.o.rounds {
		for _, c := range []nbdCell{{4 << 10, 16, 1, false}, {4 << 10, 16, 1, true}, {1 << 20, 16, 1, false}, {1 << 20, 16, 1, true}} {
			if err := a.turn(round, func(i int, _ *version) error {
				rate, _, err := servers[i].load(c, a.o.during)
				a.note("NBD "+c.String()+", MB/s", i, rate/1e6)
				return err
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// print prints medians of both, and the median of the ratios of the rounds.
func (a *comparison) print() error {
	fmt.Printf("\nThe programs of now beside those of before, %d rounds in turn, medians; the ratio is that of the rounds' ratios.\n",
		a.o.rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tnow\tbefore\tnow ÷ before\tof rounds")
	for _, name := range a.names {
		both := a.values[name]
		var ratios []float64
		for k := range both[0] {
			ratios = append(ratios, both[0][k]/both[1][k])
		}
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\n", name, median(both[0]), median(both[1]), median(ratios), ratios)
	}
	return t.Flush()
}
