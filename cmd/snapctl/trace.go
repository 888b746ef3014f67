package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
)

type traceOptions struct {
	until  untilOptions
	svg    string
	beside string
	pull   pullOptions
}

// A span is a bar of the timeline.
type span struct {
	Lane  string        `json:"lane"` // what it is drawn under
	Name  string        `json:"name"`
	Begin time.Duration `json:"begin_ns"` // since the trace began
	Took  time.Duration `json:"took_ns"`
	Bytes int64         `json:"bytes,omitempty"`
	Err   string        `json:"err,omitempty"`
}

// traced is what `snapctl trace --json` prints.
type traced struct {
	Image       string        `json:"image"`
	Digest      digest.Digest `json:"digest"`
	Cold        bool          `json:"cold"` // the image was not on the node
	Ended       string        `json:"ended"`
	Seconds     float64       `json:"seconds"` // from the beginning of the pull to the end
	Prefetched  int64         `json:"prefetched_bytes"`
	Demanded    int64         `json:"demand_bytes"`
	Waits       int           `json:"waits"`
	WaitSeconds float64       `json:"wait_seconds"`
	Beside      string        `json:"beside,omitempty"`         // another snapshotter
	BesideSecs  float64       `json:"beside_seconds,omitempty"` // the same by that
	Spans       []span        `json:"spans"`
	SVG         string        `json:"svg,omitempty"`
}

func (a *app) traceCommand() *cobra.Command {
	var o traceOptions
	c := &cobra.Command{
		Use:   "trace [flags] IMAGE [-- CMD...]",
		Short: "Pull and run an image once and show where the time goes",
		Long: `trace pulls an image, runs a container of it until it has started, and shows when what happened. It
shows the manifest, the layers' indexes, the profile, and each request for data with what it was
made for. It shows the mounts, the container's creation and first instruction, and each read for
which the program had to wait. With --svg it draws that.

An image that is on this node already is started from what is cached: remove it first (ctr images
rm --sync IMAGE) to see a cold start. What other images do at the same time is shown as well.`,
		Example: `  snapctl trace registry.example.com/redis:7-lazy --until-line "Ready to accept" --svg start.svg
  snapctl trace registry.example.com/python:3 -- python3 -c "import json"`,
		Args: imageArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return a.trace(cmd.Context(), args[0], args[1:], o) },
	}
	o.until.flags(c)
	o.pull.flags(c)
	c.Flags().StringVar(&o.svg, "svg", "", "draw the timeline to a `file`")
	c.Flags().StringVar(&o.beside, "beside", "",
		"then also pull the whole image and start it with another `snapshotter` (overlayfs), and show that beside it")
	return c
}

// A tracer collects what remorad does.
type tracer struct {
	mu     sync.Mutex // guards events
	events []*control.TraceEvent
}

func (a *app) trace(ctx context.Context, image string, args []string, o traceOptions) error {
	if err := o.until.check(); err != nil {
		return err
	}
	ref, err := normalize(image)
	if err != nil {
		return err
	}
	remora, closer, err := a.dialRemora()
	if err != nil {
		return err
	}
	defer closer.Close()
	cctx, containerd, err := a.dialContainerd(ctx)
	if err != nil {
		return err
	}
	defer containerd.Close()
	_, missing := containerd.ImageService().Get(cctx, ref)

	var t tracer
	listening := make(chan struct{})
	stopped := make(chan error, 1)
	tctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		stopped <- remora.Trace(tctx, func(e *control.TraceEvent) {
			if e.Kind == "" {
				close(listening)
				return
			}
			t.mu.Lock()
			t.events = append(t.events, e)
			t.mu.Unlock()
		})
	}()
	finish := sync.OnceFunc(func() {
		time.Sleep(traceTail)
		stop()
		<-stopped
	})
	select {
	case <-listening:
	case err := <-stopped:
		stop()
		return control.Explain(err, a.remora)
	}
	defer finish()

	began := time.Now()
	result := &traced{Image: ref, Cold: missing != nil}
	own := func(lane, name string, from, to time.Time) {
		result.Spans = append(result.Spans, span{Lane: lane, Name: name, Begin: from.Sub(began), Took: to.Sub(from)})
	}
	if result.Cold {
		if err := a.pullFirst(ctx, image, o.pull); err != nil {
			return err
		}
		own("snapctl", "pull", began, time.Now())
	}
	pulled := time.Now()
	img, err := containerd.GetImage(cctx, ref)
	if err != nil {
		return err
	}
	if result.Digest, err = manifestDigest(cctx, containerd.ContentStore(), img.Metadata()); err != nil {
		return err
	}
	r, err := a.runOnce(cctx, containerd, client.Image(img), o.pull.snapshotter, args, o.until, nil, func() error { return nil })
	if err != nil {
		return err
	}
	own("snapctl", "create container", pulled, r.created)
	own("snapctl", "first instruction", r.created, r.started)
	own("snapctl", "until "+r.ended, r.started, r.ready)
	result.Ended, result.Seconds = r.ended, r.ready.Sub(began).Seconds()
	finish()
	result.take(t.events, began, r.ready)
	if o.beside != "" {
		if err := a.traceBeside(cctx, containerd, result, args, o); err != nil {
			return fmt.Errorf("by %s: %w", o.beside, err)
		}
	}
	if o.svg != "" {
		if err := os.WriteFile(o.svg, result.draw(), 0o644); err != nil {
			return err
		}
		result.SVG = o.svg
	}
	return a.print(result, result.human)
}

// traceBeside starts the same image by another snapshotter, with all of it pulled first, and adds that
// to the timeline.
func (a *app) traceBeside(ctx context.Context, c *client.Client, result *traced, args []string, o traceOptions) error {
	t, err := a.openRegistry(ctx, result.Image, o.pull.loginOptions)
	if err != nil {
		return err
	}
	a.note("pulling and starting it by %s", o.beside)
	began := time.Now()
	img, err := c.Pull(ctx, result.Image, client.WithResolver(t.registry.Resolver(ctx)), client.WithPullUnpack,
		client.WithPullSnapshotter(o.beside))
	if err != nil {
		return err
	}
	pulled := time.Now()
	r, err := a.runOnce(ctx, c, img, o.beside, args, o.until, nil, func() error { return nil })
	if err != nil {
		return err
	}
	for _, s := range []struct {
		name     string
		from, to time.Time
	}{{"pull all of it", began, pulled}, {"create container", pulled, r.created}, {"first instruction", r.created, r.started},
		{"until " + r.ended, r.started, r.ready}} {
		result.Spans = append(result.Spans, span{Lane: besideLane, Name: s.name, Begin: s.from.Sub(began), Took: s.to.Sub(s.from)})
	}
	result.Beside, result.BesideSecs = o.beside, r.ready.Sub(began).Seconds()
	return nil
}

// besideLane is where another snapshotter's start is drawn.
const besideLane = "beside"

// traceTail is how long events may still be on their way from remorad when the program has started.
const traceTail = 50 * time.Millisecond

// take adds remorad's events up to the end.
func (r *traced) take(events []*control.TraceEvent, began, end time.Time) {
	for _, e := range events {
		if e.Began.After(end) {
			continue
		}
		s := span{Begin: max(e.Began.Sub(began), 0), Took: e.Took, Bytes: e.Len, Err: e.Err, Lane: e.Kind, Name: short(e.Digest)}
		switch e.Kind {
		case "fetch":
			s.Lane = e.For
			s.Name = fmt.Sprintf("%s at %s", short(e.Digest), size(e.Off))
			switch {
			case e.For == "demand":
				r.Demanded += e.Len
			default:
				r.Prefetched += e.Len
			}
		case "ahead":
			s.Name = fmt.Sprintf("%s at %s", short(e.Digest), size(e.Off))
		case "wait":
			s.Name = fmt.Sprintf("%s (%d) waits for %s of %s", e.What, e.PID, size(e.Len), short(e.Digest))
			r.Waits++
			r.WaitSeconds += e.Took.Seconds()
		case "profile":
			s.Name = "from the " + e.What
			if e.What == "" {
				s.Name = "there is none"
			}
		case "mount":
			s.Name += " by " + e.What
		case "index":
			if e.What != "" {
				s.Name = e.What
			}
		case "resolve":
			s.Name = e.What
		}
		r.Spans = append(r.Spans, s)
	}
	slices.SortStableFunc(r.Spans, func(a, b span) int { return cmp.Compare(a.Begin, b.Begin) })
}

func (r *traced) human(w io.Writer) {
	kind := "cold"
	if !r.Cold {
		kind = "warm: the image was on this node"
	}
	fmt.Fprintf(w, "%s: %s after %.3f s (%s)\n", r.Image, r.Ended, r.Seconds, kind)
	fmt.Fprintf(w, "fetched ahead %s, on demand %s; %d reads waited, %.3f s all together\n\n", size(r.Prefetched), size(r.Demanded), r.Waits,
		r.WaitSeconds)
	if r.Beside != "" {
		fmt.Fprintf(w, "by %s, all of it pulled first: %.3f s, %.1f times as long\n\n", r.Beside, r.BesideSecs, r.BesideSecs/r.Seconds)
	}
	for _, s := range r.Spans {
		bytes := ""
		if s.Bytes > 0 && s.Lane != "wait" {
			bytes = size(s.Bytes)
		}
		line := fmt.Sprintf("%8.1f ms  +%7.1f  %-10s  %-10s  %s", ms(s.Begin), ms(s.Took), s.Lane, bytes, s.Name)
		if s.Err != "" {
			line += "  failed: " + s.Err
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
