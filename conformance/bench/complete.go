package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// complete compares a layer whose data is all here with EROFS on a local file that mkfs.erofs
// made of the same tree.
func complete(ctx context.Context, o options) (err error) {
	s, err := testbed.NewStack(filepath.Join(o.work, "complete"), testbed.Options{LogLevel: "info"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := testbed.Programs[0].Layout(ctx); err != nil { // makes the tree
		return err
	}
	tree := filepath.Join(testbed.Work(), "trees", testbed.Programs[0].Name)
	layout := filepath.Join(o.work, "one-layer")
	if err := testbed.WriteImage(ctx, layout, "src", []testbed.Diff{{From: "", To: tree}}); err != nil {
		return err
	}
	ref := s.Ref("one:lazy")
	if _, err := s.Snapctl(ctx, "convert", "oci:"+layout+":src", ref); err != nil {
		return err
	}
	if _, err := s.Snapctl(ctx, "pull", ref); err != nil {
		return err
	}
	if _, err := s.Snapctl(ctx, "fetch", "--cache-only", ref); err != nil {
		return err
	}
	ours, local := filepath.Join(o.work, "ours"), filepath.Join(o.work, "local")
	for _, d := range []string{ours, local} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if _, err := s.Ctr(ctx, "images", "mount", "--snapshotter", "remora", ref, ours); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(ours, unix.MNT_DETACH)) }()
	file := filepath.Join(o.work, "local.erofs")
	if _, err := testbed.Output(ctx, nil, "mkfs.erofs", file, tree); err != nil {
		return err
	}
	if err := unix.Mount(file, local, "erofs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s: %w", file, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(local, unix.MNT_DETACH)) }()

	const coldTar, warmTar, coldFind, coldRun = "cold tar", "warm tar", "cold find", "cold program"
	all := []string{coldTar, warmTar, coldFind, coldRun}
	times := map[string]map[string][]time.Duration{ours: {}, local: {}}
	cache := map[string]float64{}
	for range o.rounds {
		for _, dir := range []string{local, ours} {
			for _, what := range all {
				if what != warmTar {
					if err := dropCaches(); err != nil {
						return err
					}
				}
				before := cached()
				took, err := time.Duration(0), error(nil)
				if what == coldRun {
					took, err = programTime(ctx, dir)
				} else {
					took, err = walkTime(ctx, dir, what == coldFind)
				}
				if err != nil {
					return err
				}
				times[dir][what] = append(times[dir][what], took)
				if what == coldTar {
					cache[dir] = float64(cached() - before)
				}
			}
		}
	}
	read, err := treeBytes(tree)
	if err != nil {
		return err
	}
	// What is left in the page cache when remorad has given the second copies back.
	if err := dropCaches(); err != nil {
		return err
	}
	before := cached()
	if _, err := walkTime(ctx, ours, false); err != nil {
		return err
	}
	time.Sleep(pagesSettle)
	settled := float64(cached()-before) / read
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\nComplete layer (%s), %.0f MB, %d rounds, medians.\n", st.Layers[0].Backend, read/1e6, o.rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "seconds\t%s\tpage cache ÷ bytes read\n", strings.Join(all, "\t"))
	for _, row := range []struct{ name, dir string }{{"EROFS on a local file", local}, {"remora, complete layer", ours}} {
		fmt.Fprint(t, row.name)
		for _, what := range all {
			fmt.Fprintf(t, "\t%.3f %s", median(times[row.dir][what]).Seconds(), millis(times[row.dir][what]))
		}
		fmt.Fprintf(t, "\t%.2f\n", cache[row.dir]/read)
	}
	fmt.Fprint(t, "ratio")
	for _, what := range all {
		fmt.Fprintf(t, "\t%.2f", float64(median(times[ours][what]))/float64(median(times[local][what])))
	}
	fmt.Fprintln(t, "\t")
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("%s later the page cache of remora's is %.2f of the bytes read.\n", pagesSettle, settled)
	return nil
}

const pagesSettle = 22 * time.Second // remorad gives second copies back every ten

// programTime starts the program in a tree and waits for its output.
func programTime(ctx context.Context, dir string) (time.Duration, error) {
	c := exec.CommandContext(ctx, "chroot", append([]string{dir}, testbed.Programs[0].Args...)...)
	began := time.Now()
	out, err := c.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", c, err, out)
	}
	return time.Since(began), nil
}

// walkTime reads a whole tree, or only what stat(2) says of it.
func walkTime(ctx context.Context, dir string, statOnly bool) (time.Duration, error) {
	c := exec.CommandContext(ctx, "sh", "-c", `tar -C "$0" -cf - . | wc -c`, dir)
	if statOnly {
		c = exec.CommandContext(ctx, "sh", "-c", `find "$0" -printf '%s %m %T@ %p\n' | wc -l`, dir)
	}
	began := time.Now()
	out, err := c.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", c, err, out)
	}
	return time.Since(began), nil
}

// cached returns the bytes in the page cache.
func cached() int64 {
	p, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(p)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "Cached: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}

func treeBytes(dir string) (n float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			n += float64(st.Size())
		}
		return err
	})
	return n, err
}

func millis(all []time.Duration) string {
	var parts []string
	for _, d := range all {
		parts = append(parts, fmt.Sprintf("%d", d.Milliseconds()))
	}
	return "[" + strings.Join(parts, " ") + " ms]"
}
