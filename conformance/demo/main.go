package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
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
	size, err := imageSize(layout)
	if err != nil {
		return err
	}
	t := &table{size: size}
	pull := func(ref string) func() error {
		return func() error {
			out, err := s.Snapctl(ctx, "pull", ref)
			fmt.Print(out)
			return err
		}
	}
	step("remora: snapctl pull %s, as it is, then run %s", src, p.Args[0])
	if err := t.measure(ctx, s, "remora, the image as it is", src, "remora", p, pull(src)); err != nil {
		return err
	}
	if err := forget(ctx, s, src); err != nil {
		return err
	}
	step("remora: the same once more, by the index that was made of it")
	if err := t.measure(ctx, s, "remora, its second time here", src, "remora", p, pull(src)); err != nil {
		return err
	}
	if err := forget(ctx, s, src); err != nil {
		return err
	}
	step("containerd's overlayfs: pull all, then run")
	if err := t.measure(ctx, s, "overlayfs, full pull", src, "overlayfs", p, func() error {
		return s.PullOrdinary(ctx, src, "overlayfs")
	}); err != nil {
		return err
	}
	step("snapctl convert %s %s --prioritize %s", src, lazy, filepath.Base(p.FilesList()))
	out, err := s.Snapctl(ctx, "convert", src, lazy, "--prioritize", p.FilesList())
	if err != nil {
		return err
	}
	fmt.Print(out)
	step("remora: snapctl pull %s, then run", lazy)
	if err := t.measure(ctx, s, "remora, converted", lazy, "remora", p, pull(lazy)); err != nil {
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	var plain int64
	for _, l := range st.Layers {
		plain += l.TotalBytes
	}
	recovered, err := volume(ctx, s, layout)
	if err != nil {
		return err
	}
	fmt.Println()
	t.print()
	fmt.Printf("\nBack end %s. %s of %s of the converted image are on this machine; the rest comes when it is read.\n", st.Backend.Name,
		units.HumanSize(float64(present(st))), units.HumanSize(float64(plain)))
	fmt.Printf("The volume has every byte; who wrote to it waited %.2f s for remorad to come back, and saw no error.\n", recovered.Seconds())
	return nil
}

// volume makes a disk in a store, writes the image to it while remorad is killed, and insists that the store has all of it
// afterwards. It returns for how long remorad was not there.
func volume(ctx context.Context, s *testbed.Stack, layout string) (away time.Duration, err error) {
	mnt := filepath.Join(s.Dir, "mnt")
	snapctl := func(args ...string) error {
		step("snapctl volume %s", strings.Join(args, " "))
		out, err := s.Snapctl(ctx, append([]string{"volume"}, args...)...)
		fmt.Print(out)
		return err
	}
	if err := snapctl("create", "--store", "file:"+filepath.Join(s.Dir, "volumes"), "data", "10G"); err != nil {
		return 0, err
	}
	if err := snapctl("mount", "data", mnt); err != nil {
		return 0, err
	}
	step("copying the image to it and syncing, while remorad is killed with -9 and started again")
	copied := make(chan error, 1)
	go func() {
		_, err := testbed.Output(ctx, nil, "cp", "-a", layout, filepath.Join(mnt, "image"))
		if err == nil {
			_, err = testbed.Output(ctx, nil, "sync", "-f", mnt)
		}
		copied <- err
	}()
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	if err := s.StopRemorad(syscall.SIGKILL); err != nil {
		return 0, err
	}
	if err := s.StartRemoradOnly(); err != nil {
		return 0, err
	}
	away = time.Since(began)
	if err := <-copied; err != nil {
		return 0, err
	}
	for _, args := range [][]string{{"umount", "data"}, {"fsck", "data"}, {"mount", "data", mnt}} {
		if err := snapctl(args...); err != nil {
			return 0, err
		}
	}
	if out, err := testbed.Output(ctx, nil, "diff", "-r", layout, filepath.Join(mnt, "image")); err != nil {
		return 0, fmt.Errorf("what the volume has is not what was written: %w: %s", err, out)
	}
	for _, args := range [][]string{{"umount", "data"}, {"rm", "data"}} {
		if err := snapctl(args...); err != nil {
			return 0, err
		}
	}
	return away, nil
}

// table collects what the demonstration shows at its end.
type table struct {
	size int64 // of the image
	rows []row
}

type row struct {
	name    string
	fetched int64
	took    time.Duration
}

// measure pulls and runs once.
func (t *table) measure(ctx context.Context, s *testbed.Stack, name, ref, snapshotter string, p testbed.Program, pull func() error) error {
	took, err := timed(ctx, s, ref, snapshotter, p, pull)
	if err != nil {
		return err
	}
	fetched := t.size
	if snapshotter == "remora" {
		st, err := s.Status(ctx)
		if err != nil {
			return err
		}
		fetched = 0
		for _, l := range st.Layers {
			fetched += l.FetchedBytes
		}
	}
	t.rows = append(t.rows, row{name, fetched, took})
	return nil
}

func (t *table) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\timage\tfetched\ttime to the program's output")
	for _, r := range t.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f s\n", r.name, units.HumanSize(float64(t.size)), units.HumanSize(float64(r.fetched)), r.took.Seconds())
	}
	w.Flush()
}

// forget removes an image and waits until what was cached of it is gone, and its indexes are made.
func forget(ctx context.Context, s *testbed.Stack, ref string) error {
	time.Sleep(2 * time.Second)
	if _, err := s.Ctr(ctx, "images", "rm", "--sync", ref); err != nil {
		return err
	}
	for range 100 {
		st, err := s.Status(ctx)
		if err != nil {
			return err
		}
		if len(st.Layers) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("remorad keeps layers of a removed image")
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
