package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/fs/profile"
)

type recordOptions struct {
	until  untilOptions
	output string
	pull   pullOptions
}

// recorded is what `snapctl record --json` prints. Sizes are bytes.
type recorded struct {
	Image   string        `json:"image"`
	Digest  digest.Digest `json:"digest"`
	Ended   string        `json:"ended"`
	Seconds float64       `json:"seconds"` // from the start to the end of the recording
	Files   int           `json:"files"`
	Entries int           `json:"entries"`
	Bytes   int64         `json:"bytes"`
	Runs    int           `json:"runs"` // in the node's profile now
	Output  string        `json:"output,omitempty"`
}

func (a *app) recordCommand() *cobra.Command {
	var o recordOptions
	c := &cobra.Command{
		Use:   "record [flags] IMAGE [-- CMD...]",
		Short: "Run an image once and record what it reads when it starts",
		Long: `record runs a container of an image, which it pulls if need be. It records which parts of which
files are read, mapped or executed, in order. The result is merged into the image's profile on this
node, by which later pulls fetch them before the container exists.

It ends with the first of: the process exits, --until-line, --until-port, --for, Ctrl-C.
The container has a network of its own with loopback alone, and is removed at the end.

Publish the profile for other nodes with "snapctl profile push", or put the files in its order
into the image with "snapctl convert --profile".`,
		Example: `  snapctl record registry.example.com/redis:7-lazy --until-line "Ready to accept connections"
  snapctl record registry.example.com/web:3 --until-port 8080
  snapctl record registry.example.com/python:3 -- python3 -c "import json"`,
		Args: imageArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return a.record(cmd.Context(), args[0], args[1:], o) },
	}
	o.until.flags(c)
	o.pull.flags(c)
	c.Flags().StringVarP(&o.output, "output", "o", "", "also write this run's profile to a `file`")
	return c
}

func (a *app) record(ctx context.Context, image string, args []string, o recordOptions) error {
	if err := o.until.check(); err != nil {
		return err
	}
	s, err := a.openImage(ctx, image, o.pull)
	if err != nil {
		return err
	}
	defer s.close()
	a.note("recording until %s", o.until.words())
	p, r, err := s.record(args, o)
	if err != nil {
		return fmt.Errorf("record %s: %w", s.img.Name(), err)
	}
	if len(p.Entries) == 0 {
		return fmt.Errorf("record %s: nothing of the image was read", s.img.Name())
	}
	data, err := p.Encode()
	if err != nil {
		return err
	}
	if o.output != "" {
		if err := os.WriteFile(o.output, data, 0o644); err != nil {
			return err
		}
	}
	reply, err := s.remora.AddProfile(context.WithoutCancel(ctx), &control.ProfileRequest{Manifest: s.manifest, Profile: data})
	if err != nil {
		return control.Explain(err, a.remora)
	}
	merged, err := profile.Decode(reply.Profile)
	if err != nil {
		return err
	}
	result := &recorded{
		Image: s.img.Name(), Digest: s.manifest, Ended: r.ended, Seconds: r.ready.Sub(r.started).Seconds(),
		Files: len(p.Paths()), Entries: len(p.Entries), Bytes: p.Bytes(), Runs: merged.Runs, Output: r.output,
	}
	return a.print(result, result.human)
}

func (r *recorded) human(w io.Writer) {
	fmt.Fprintf(w, "%s: %s after %.2f s; %s of %d files were read\n", r.Image, r.Ended, r.Seconds, size(r.Bytes), r.Files)
	fmt.Fprintf(w, "its profile on this node is of %d runs now; for other nodes: snapctl profile push %s\n", r.Runs, r.Image)
}

// imageSession is an image that is on this node, with what is needed to run it.
type imageSession struct {
	*app
	ctx        context.Context // with containerd's namespace
	containerd *client.Client
	remora     *control.Client
	closers    []io.Closer
	img        client.Image
	manifest   digest.Digest // of this platform
}

func (s *imageSession) close() {
	for _, c := range s.closers {
		c.Close() // connections that are of no use any more
	}
}

// openImage returns an image that is on this node, pulling it if it is not.
func (a *app) openImage(ctx context.Context, image string, o pullOptions) (_ *imageSession, err error) {
	ref, err := normalize(image)
	if err != nil {
		return nil, err
	}
	s := &imageSession{app: a}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var closer io.Closer
	if s.remora, closer, err = a.dialRemora(); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, closer)
	if s.ctx, s.containerd, err = a.dialContainerd(ctx); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.containerd)
	s.img, err = s.containerd.GetImage(s.ctx, ref)
	if errdefs.IsNotFound(err) {
		a.note("%s is not on this node, pulling it", ref)
		if err := a.pullFirst(ctx, image, o); err != nil {
			return nil, err
		}
		s.img, err = s.containerd.GetImage(s.ctx, ref)
	}
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", a.containerd, err)
	}
	if s.manifest, err = manifestDigest(s.ctx, s.containerd.ContentStore(), s.img.Metadata()); err != nil {
		return nil, err
	}
	return s, nil
}

// record runs the image once with recorded mounts.
func (s *imageSession) record(args []string, o recordOptions) (p *profile.Profile, r runResult, err error) {
	// An interrupt ends the run; what was recorded until then is kept.
	keep, release := context.WithCancel(context.WithoutCancel(s.ctx))
	ready := make(chan *control.RecordReply, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- s.remora.Record(keep, &control.RecordRequest{Namespace: s.namespace, Manifest: s.manifest, Ref: s.img.Name()},
			func(r *control.RecordReply) { ready <- r })
	}()
	defer func() {
		release()
		<-ended
	}()
	var reply *control.RecordReply
	select {
	case reply = <-ready:
	case err := <-ended:
		ended <- nil
		return nil, r, control.Explain(err, s.app.remora)
	}
	defer func() {
		if err := s.remora.EndRecording(context.WithoutCancel(s.ctx), &control.RecordingRequest{ID: reply.ID}); err != nil {
			s.note("the recording's mounts may stay until remorad is started again: %v", control.Explain(err, s.app.remora))
		}
	}()
	r, err = s.runOnce(s.ctx, s.containerd, s.img, o.pull.snapshotter, args, o.until, map[string]string{reply.Label: reply.ID}, func() error {
		got, err := s.remora.Recorded(context.WithoutCancel(s.ctx), &control.RecordingRequest{ID: reply.ID})
		if err != nil {
			return control.Explain(err, s.app.remora)
		}
		p, err = profile.Decode(got.Profile)
		return err
	})
	if err == nil && p == nil {
		err = errors.New("nothing was recorded")
	}
	return p, r, err
}
