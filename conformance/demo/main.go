// Command demo shows Remora's main job on real input: a multi-layer image of Debian packages is
// pushed to a registry, converted, pulled and run by containerd, once in the ordinary way and
// once lazily.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"github.com/remora-storage/remora/conformance/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func step(format string, args ...any) { fmt.Printf("==> "+format+"\n", args...) }

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: sudo make demo")
	}
	p := testbed.Programs[0]
	step("image: Debian %s with %v (made once, kept in %s)", testbed.Suite, p.Packages, testbed.Work())
	layout, err := p.Layout(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "remora-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	step("starting a registry, containerd and remorad")
	s, err := testbed.NewStack(dir, testbed.Options{Registry: filepath.Join(testbed.Work(), "demo-registry"), LogLevel: "info"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	src, lazy := s.Ref("python:src"), s.Ref("python:lazy")
	step("pushing it to %s", src)
	if err := s.Push(ctx, layout, "src", "python:src"); err != nil {
		return err
	}
	step("snapctl convert %s %s --prioritize %s", src, lazy, filepath.Base(p.FilesList()))
	out, err := s.Snapctl(ctx, "convert", src, lazy, "--prioritize", p.FilesList())
	if err != nil {
		return err
	}
	fmt.Print(out)
	step("containerd's overlayfs: pull all, then run %s", p.Args[0])
	full, err := timed(ctx, s, src, "overlayfs", p, func() error { return s.PullOrdinary(ctx, src, "overlayfs") })
	if err != nil {
		return err
	}
	step("remora: snapctl pull %s, then run", lazy)
	quick, err := timed(ctx, s, lazy, "remora", p, func() error {
		out, err := s.Snapctl(ctx, "pull", lazy)
		fmt.Print(out)
		return err
	})
	if err != nil {
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	var fetched, plain int64
	for _, l := range st.Layers {
		fetched += l.FetchedBytes
		plain += l.TotalBytes
	}
	size, err := imageSize(layout)
	if err != nil {
		return err
	}
	fmt.Println()
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\timage\tfetched\ttime to the program's output")
	fmt.Fprintf(t, "overlayfs, full pull\t%s\t%s\t%.2f s\n", units.HumanSize(float64(size)), units.HumanSize(float64(size)), full.Seconds())
	fmt.Fprintf(t, "remora (%s)\t%s\t%s\t%.2f s\n", st.Backend.Name, units.HumanSize(float64(size)), units.HumanSize(float64(fetched)), quick.Seconds())
	t.Flush()
	fmt.Printf("\n%s of %s are on this machine; the rest comes when it is read.\n", units.HumanSize(float64(present(st))), units.HumanSize(float64(plain)))
	return nil
}

func timed(ctx context.Context, s *testbed.Stack, ref, snapshotter string, p testbed.Program, pull func() error) (time.Duration, error) {
	began := time.Now()
	if err := pull(); err != nil {
		return 0, err
	}
	end, err := s.RunProgram(ctx, ref, snapshotter, p)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	fmt.Printf("%q after %.2f s\n", p.Want, took.Seconds())
	return took, end()
}

func present(st *testbed.Status) (n int64) {
	for _, l := range st.Layers {
		n += l.PresentBytes
	}
	return n
}

func imageSize(layout string) (n int64, err error) {
	entries, err := os.ReadDir(filepath.Join(layout, "blobs", "sha256"))
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			return 0, err
		}
		n += st.Size()
	}
	return n, nil
}
