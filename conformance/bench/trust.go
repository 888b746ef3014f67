package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/link"
)

// trust measures what it costs that a layer is checked as a whole before its first use: the same registry by two names, of which
// one has [trust.for] diff_id = "before_use".
func trust(ctx context.Context, o options) (err error) {
	s, background, err := benchStack(ctx, filepath.Join(o.work, "trust"), o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(), background.Close()) }()
	before, err := link.New(s.Addr, link.Options{RTT: o.rtt, Rate: o.mbit * 1e6 / 8})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, before.Close()) }()
	if err := s.PlainHTTP(before.Addr(), before.Addr()); err != nil {
		return err
	}
	s.Configure(fmt.Sprintf("[trust.for.%q]\ndiff_id = \"before_use\"\n", before.Addr()))
	if err := s.RestartRemorad(syscall.SIGTERM); err != nil {
		return err
	}
	fmt.Printf("\nCold start with diff_id = \"before_use\". Link: %s. %d rounds, medians.\n", background, o.rounds)
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "\tprogram\tbackground, s\tbefore_use, s\tratio")
	for _, w := range ways {
		if w.tag != "lazy" && w.tag != "zstd" {
			continue
		}
		for _, p := range o.programs {
			a, b, err := startsBy(ctx, o, s, w, p, background, before)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s\t%s\t%.2f\t%.2f\t%.2f\n", w.name, p.Name, a.Seconds(), b.Seconds(), b.Seconds()/a.Seconds())
		}
	}
	return out.Flush()
}

// startsBy returns the medians of cold starts by two links, in turn.
func startsBy(
	ctx context.Context, o options, s *testbed.Stack, w way, p testbed.Program, one, other *link.Link,
) (a, b time.Duration, err error) {
	times := map[*link.Link][]time.Duration{}
	for range o.rounds {
		for _, k := range []*link.Link{one, other} {
			took, err := coldOnce(ctx, s, k, w, p)
			if err != nil {
				return 0, 0, err
			}
			times[k] = append(times[k], took)
		}
	}
	return median(times[one]), median(times[other]), settle()
}
