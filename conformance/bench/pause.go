package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

const pauseKills = 30

// pause measures how long a reader of missing data waits when remorad is killed while it reads and
// started again immediately.
func pause(ctx context.Context, o options) (err error) {
	tree := filepath.Join(o.work, "pause-tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if err := bigTree(tree); err != nil {
		return err
	}
	fmt.Printf("\nRead of 64 KiB of missing data. %d reads undisturbed, and %d during which remorad is killed with SIGKILL "+
		"and started again immediately.\n", pauseKills, pauseKills)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ms\tundisturbed p50\tp99\tkilled p50\tp99")
	for _, backend := range []string{"precontent", "fuse-file"} {
		if err := pauseBy(ctx, o, t, backend, tree); err != nil {
			return err
		}
	}
	return t.Flush()
}

func pauseBy(ctx context.Context, o options, t *tabwriter.Writer, backend, tree string) (err error) {
	s, _, on, end, err := bigMounted(ctx, o, "pause", backend, tree)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	f, err := os.Open(filepath.Join(on, bigFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	// Places far enough from each other that no read brings the next one's data.
	const places = 2 * pauseKills
	order := rand.New(rand.NewPCG(5, 5)).Perm(places)
	read := func(i int) (time.Duration, error) {
		began := time.Now()
		_, err := f.ReadAt(make([]byte, 64<<10), int64(order[i])*(bigBytes/places))
		return time.Since(began), err
	}
	var calm, killed []time.Duration
	for i := range pauseKills {
		took, err := read(i)
		if err != nil {
			return err
		}
		calm = append(calm, took)
	}
	type result struct {
		took time.Duration
		err  error
	}
	for i := range pauseKills {
		if err := s.StopRemorad(syscall.SIGKILL); err != nil {
			return err
		}
		done := make(chan result, 1)
		go func() {
			took, err := read(pauseKills + i)
			done <- result{took, err}
		}()
		if err := s.StartRemorad(); err != nil {
			return err
		}
		r := <-done
		if r.err != nil {
			return r.err
		}
		killed = append(killed, r.took)
	}
	ms := func(all []time.Duration, p float64) float64 {
		sorted := slices.Sorted(slices.Values(all))
		return sorted[int(p*float64(len(sorted)-1))].Seconds() * 1000
	}
	_, err = fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t%.1f\n", backend, ms(calm, .5), ms(calm, .99), ms(killed, .5), ms(killed, .99))
	return err
}
