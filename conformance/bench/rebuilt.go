package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// rebuilt measures the cold start of an image's next build: without a profile, and with the one that
// was recorded on the build before.
func rebuilt(ctx context.Context, o options) (err error) {
	p := testbed.Programs[0]
	o.programs = []testbed.Program{p}
	s, k, err := benchStack(ctx, filepath.Join(o.work, "rebuilt"), o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(), k.Close()) }()
	layout := filepath.Join(o.work, "next")
	if err := p.Rebuild(ctx, layout); err != nil {
		return err
	}
	for _, tag := range []string{"next-plain", "next-beside"} {
		if _, err := s.Snapctl(ctx, "convert", "oci:"+layout+":src", s.Ref(p.Name+"/"+tag+":"+tag)); err != nil {
			return err
		}
	}
	file := filepath.Join(o.work, "before.profile")
	if _, err := s.Snapctl(ctx, "profile", "pull", s.Ref(p.Name+"/beside:beside"), file); err != nil {
		return err
	}
	if _, err := s.Snapctl(ctx, "profile", "push", s.Ref(p.Name+"/next-beside:next-beside"), file); err != nil {
		return err
	}
	fmt.Printf("\nThe next build of %s (20 files changed, one added before all others), cold. Link: %s. %d rounds in turn, "+
		"medians.\n", p.Name, k, o.rounds)
	ways := []way{
		{"nothing known", "next-plain", "remora", pullLazy},
		{"profile of the build before", "next-beside", "remora", pullLazy},
		{"the build before itself, its own profile", "beside", "remora", pullLazy},
	}
	times := map[string][]time.Duration{}
	waits := map[string]int{}
	for range o.rounds {
		for _, w := range ways {
			took, err := coldOnce(ctx, s, k, w, p)
			if err != nil {
				return err
			}
			times[w.name] = append(times[w.name], took)
			if waits[w.name], err = waited(ctx, s); err != nil {
				return err
			}
		}
	}
	base := median(times[ways[0].name])
	for _, w := range ways {
		m := median(times[w.name])
		fmt.Printf("%-42s %.2f s %s, ratio %.2f, %d reads waited\n", w.name, m.Seconds(), seconds(times[w.name]),
			float64(m)/float64(base), waits[w.name])
	}
	return nil
}

// waited returns how many reads have waited for the network since remorad started, of the layers that
// are here.
func waited(ctx context.Context, s *testbed.Stack) (n int, err error) {
	st, err := s.Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, l := range st.Layers {
		n += l.Waits
	}
	return n, nil
}
