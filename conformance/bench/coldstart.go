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

// A way of starting a container from an image that is not here.
type way struct {
	name        string
	tag         string // of the image it pulls
	snapshotter string
	pull        func(ctx context.Context, s *testbed.Stack, ref, snapshotter string) error
}

func pullFull(ctx context.Context, s *testbed.Stack, ref, snapshotter string) error {
	return s.PullOrdinary(ctx, ref, snapshotter)
}

func pullLazy(ctx context.Context, s *testbed.Stack, ref, _ string) error {
	_, err := s.Snapctl(ctx, "pull", ref)
	return err
}

var ways = []way{
	{"overlayfs, full pull", "src", "overlayfs", pullFull},
	{"erofs snapshotter, full pull", "src", "erofs", pullFull},
	{"remora, profile baked in, zstd:chunked", "zstd", "remora", pullLazy},
	{"remora, profile baked in, eStargz", "lazy", "remora", pullLazy},
	{"remora, profile beside it", "beside", "remora", pullLazy},
	{"remora, nothing known", "plain", "remora", pullLazy},
	{"remora, unmodified image, first node", "src", "remora", pullLazy},
	{"remora, unmodified image, index and profile beside it", "indexed", "remora", pullLazy},
}

const floor = "floor"

// coldStart measures the time from the beginning of the pull to the program's output.
func coldStart(ctx context.Context, o options) (err error) {
	s, k, err := benchStack(ctx, filepath.Join(o.work, "coldstart"), o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(), k.Close()) }()
	fmt.Printf("\nCold start: pull + run until the program's output. Link: %s. %d rounds, medians.\n", k, o.rounds)
	times := map[string]map[string][]time.Duration{} // way, program
	for _, w := range ways {
		times[w.name] = map[string][]time.Duration{}
	}
	times[floor] = map[string][]time.Duration{}
	waits := map[string]map[string]int{} // the most of all rounds
	skipped := map[string]error{}
	for round := range o.rounds {
		for _, p := range o.programs {
			for _, w := range ways {
				if skipped[w.name] != nil {
					continue
				}
				took, err := coldOnce(ctx, s, k, w, p)
				if err != nil && w.snapshotter == "erofs" {
					skipped[w.name] = err
					continue
				}
				if err != nil {
					return err
				}
				times[w.name][p.Name] = append(times[w.name][p.Name], took)
				n, err := waited(ctx, s)
				if err != nil {
					return err
				}
				if waits[w.name] == nil {
					waits[w.name] = map[string]int{}
				}
				waits[w.name][p.Name] = max(waits[w.name][p.Name], n)
			}
			took, err := floorOnce(ctx, s, k, o, p)
			if err != nil {
				return err
			}
			times[floor][p.Name] = append(times[floor][p.Name], took)
		}
		fmt.Fprintf(os.Stderr, "round %d of %d done\n", round+1, o.rounds)
	}
	for name, err := range skipped {
		fmt.Printf("%s: not measured here: %v\n", name, err)
	}
	if err := settle(); err != nil { // the last container
		return err
	}
	printColdStart(o, times)
	fmt.Println("\nReads that waited for the network, the most of all rounds:")
	for _, w := range ways {
		if w.snapshotter != "remora" {
			continue
		}
		fmt.Printf("%s:", w.name)
		for _, p := range o.programs {
			fmt.Printf(" %s %d", p.Name, waits[w.name][p.Name])
		}
		fmt.Println()
	}
	return nil
}

// benchStack starts a stack whose registry is behind the link, with all images in it.
func benchStack(ctx context.Context, dir string, o options) (*testbed.Stack, *link.Link, error) {
	s, err := testbed.NewStack(dir, testbed.Options{Registry: filepath.Join(testbed.Work(), "bench-registry"),
		LogLevel: "info", Config: o.config})
	if err != nil {
		return nil, nil, err
	}
	for _, p := range o.programs {
		layout, err := p.Layout(ctx)
		if err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		if err := errors.Join(pushAll(ctx, s, p, layout), pushIndexed(ctx, s, p, layout)); err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
	}
	k, err := link.New(s.Addr, link.Options{RTT: o.rtt, Rate: o.mbit * 1e6 / 8})
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	if err := s.PlainHTTP(k.Addr(), k.Addr()); err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	var trusted []string
	for _, p := range o.programs {
		trusted = append(trusted, fmt.Sprintf("%q", k.Addr()+"/"+p.Name+"/indexed"))
	}
	s.Configure("[index]\ntrust = [" + strings.Join(trusted, ", ") + "]\n")
	return s, k, s.RestartRemorad(syscall.SIGTERM)
}

// pushAll pushes a program's image as it is and converted: with its profile in the layout, with it
// beside, and without any, each in a repository of its own, since a profile serves a whole repository.
func pushAll(ctx context.Context, s *testbed.Stack, p testbed.Program, layout string) error {
	marker := filepath.Join(testbed.Work(), "bench-registry", p.Name+".pushed")
	const version = "profiles 4" // of what is pushed
	if have, err := os.ReadFile(marker); err == nil && string(have) == version {
		return nil
	}
	fmt.Fprintf(os.Stderr, "pushing, converting and recording %s\n", p.Name)
	if err := s.Push(ctx, layout, "src", p.Name+"/src:src"); err != nil {
		return err
	}
	for _, tag := range []string{"plain", "beside"} {
		if _, err := s.Snapctl(ctx, "convert", "oci:"+layout+":src", s.Ref(p.Name+"/"+tag+":"+tag)); err != nil {
			return err
		}
	}
	file := filepath.Join(s.Dir, p.Name+".profile")
	args := append([]string{"record", "--until-line", p.Want, "-o", file, s.Ref(p.Name + "/beside:beside"), "--"}, p.Args...)
	if _, err := s.Snapctl(ctx, args...); err != nil {
		return err
	}
	if _, err := s.Snapctl(ctx, "profile", "push", s.Ref(p.Name+"/beside:beside"), file); err != nil {
		return err
	}
	for tag, format := range map[string]string{"lazy": "estargz", "zstd": "zstdchunked"} {
		if _, err := s.Snapctl(ctx, "convert", "--format", format, "--profile", file, "oci:"+layout+":src",
			s.Ref(p.Name+"/"+tag+":"+tag)); err != nil {
			return err
		}
	}
	// It was recorded on this node too, where the rounds must not find it.
	if _, err := s.Snapctl(ctx, "profile", "rm", s.Ref(p.Name+"/beside:beside")); err != nil {
		return err
	}
	return os.WriteFile(marker, []byte(version), 0o644)
}

// pushIndexed pushes a program's image as it is, with its index and its profile beside it.
func pushIndexed(ctx context.Context, s *testbed.Stack, p testbed.Program, layout string) error {
	marker := filepath.Join(testbed.Work(), "bench-registry", p.Name+".indexed")
	const version = "index 1" // of what is pushed
	if have, err := os.ReadFile(marker); err == nil && string(have) == version {
		return nil
	}
	fmt.Fprintf(os.Stderr, "indexing and recording %s\n", p.Name)
	ref := s.Ref(p.Name + "/indexed:indexed")
	if err := s.Push(ctx, layout, "src", p.Name+"/indexed:indexed"); err != nil {
		return err
	}
	file := filepath.Join(s.Dir, p.Name+".indexed-profile")
	for _, args := range [][]string{
		append([]string{"record", "--until-line", p.Want, "-o", file, ref, "--"}, p.Args...),
		{"profile", "push", ref, file}, {"profile", "rm", ref}, {"index", "create", ref}, {"index", "push", ref},
	} {
		if _, err := s.Snapctl(ctx, args...); err != nil {
			return err
		}
	}
	return os.WriteFile(marker, []byte(version), 0o644)
}

// coldOnce pulls and runs once, with nothing of the image left from before.
func coldOnce(ctx context.Context, s *testbed.Stack, k *link.Link, w way, p testbed.Program) (time.Duration, error) {
	ref := k.Addr() + "/" + p.Name + "/" + w.tag + ":" + w.tag
	if err := clean(ctx, s); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := w.pull(ctx, s, ref, w.snapshotter); err != nil {
		return 0, err
	}
	if err := runUntilOutput(ctx, s, ref, w.snapshotter, p); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// clean removes all images and what was cached of them.
func clean(ctx context.Context, s *testbed.Stack) error {
	if err := settle(); err != nil {
		return err
	}
	refs, err := s.Ctr(ctx, "images", "ls", "-q")
	if err != nil {
		return err
	}
	if all := strings.Fields(refs); len(all) > 0 {
		if _, err := s.Ctr(ctx, append([]string{"images", "rm", "--sync"}, all...)...); err != nil {
			return err
		}
	}
	for range 100 {
		st, err := s.Status(ctx)
		if err != nil {
			return err
		}
		if len(st.Layers) == 0 && st.Cache.Bytes == 0 {
			if err := os.RemoveAll(filepath.Join(s.Root, "indexes")); err != nil { // of layers that were imported here
				return err
			}
			return dropCaches()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("remorad keeps layers of removed images")
}

// pending is the end of the container that runs last.
var pending func() error

// runUntilOutput runs the program's container until the line that says that it works. The rest
// of its life is not part of the measurement; settle waits for it.
func runUntilOutput(ctx context.Context, s *testbed.Stack, ref, snapshotter string, p testbed.Program) (err error) {
	pending, err = s.RunProgram(ctx, ref, snapshotter, p)
	return err
}

func settle() error {
	end := pending
	pending = nil
	if end == nil {
		return nil
	}
	return end()
}

// floorOnce is what no lazy start can beat: the same container from a complete cache, six round
// trips, and the packed bytes that the program reads at the link's rate.
func floorOnce(ctx context.Context, s *testbed.Stack, k *link.Link, o options, p testbed.Program) (time.Duration, error) {
	ref := k.Addr() + "/" + p.Name + "/plain:plain"
	if err := clean(ctx, s); err != nil {
		return 0, err
	}
	if err := pullLazy(ctx, s, ref, ""); err != nil {
		return 0, err
	}
	if err := runUntilOutput(ctx, s, ref, "remora", p); err != nil {
		return 0, err
	}
	if err := settle(); err != nil {
		return 0, err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return 0, err
	}
	read := int64(0)
	for _, l := range st.Layers {
		read += l.ReadBytes
	}
	if _, err := s.Snapctl(ctx, "fetch", "--cache-only", ref); err != nil {
		return 0, err
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := runUntilOutput(ctx, s, ref, "remora", p); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took + 6*o.rtt + time.Duration(read*8*int64(time.Second)/(o.mbit*1e6)), nil
}

func printColdStart(o options, times map[string]map[string][]time.Duration) {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "seconds (÷ overlayfs)")
	for _, p := range o.programs {
		fmt.Fprintf(t, "\t%s", p.Name)
	}
	fmt.Fprintln(t, "\tmean ÷ overlayfs\tmean ÷ floor")
	names := []string{}
	for _, w := range ways {
		names = append(names, w.name)
	}
	base := ways[0].name
	for _, name := range append(names, floor) {
		if len(times[name]) == 0 {
			continue
		}
		fmt.Fprint(t, name)
		var toBase, toFloor float64
		for _, p := range o.programs {
			m := median(times[name][p.Name])
			r := float64(m) / float64(median(times[base][p.Name]))
			toBase += r
			toFloor += float64(m) / float64(median(times[floor][p.Name]))
			fmt.Fprintf(t, "\t%.2f (%.2f) %s", m.Seconds(), r, seconds(times[name][p.Name]))
		}
		n := float64(len(o.programs))
		fmt.Fprintf(t, "\t%.3f\t%.2f\n", toBase/n, toFloor/n)
	}
	t.Flush()
}

func seconds(all []time.Duration) string {
	var parts []string
	for _, d := range all {
		parts = append(parts, fmt.Sprintf("%.2f", d.Seconds()))
	}
	return "[" + strings.Join(parts, " ") + "]"
}
