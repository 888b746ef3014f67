package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/remote/registry"
)

const reconnectTries = 5

type pullOptions struct {
	loginOptions
	snapshotter string
}

// pulledImage is what `snapctl pull --json` prints.
type pulledImage struct {
	Image       string        `json:"image"`
	Digest      digest.Digest `json:"digest"`
	Snapshotter string        `json:"snapshotter"`
	Seconds     float64       `json:"seconds"`
	Layers      []pulledLayer `json:"layers"`
}

type pulledLayer struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`             // packed bytes
	How    string        `json:"how"`              // lazy, imported, or unpacked by containerd
	Lazy   bool          `json:"lazy"`             // its data stays in the registry until it is read
	Reason string        `json:"reason,omitempty"` // why containerd unpacked it
}

const (
	howLazy     = "lazy"
	howImported = "imported"
	howUnpacked = "unpacked"
)

func (a *app) pullCommand() *cobra.Command {
	var o pullOptions
	c := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Pull an image, lazily where that is possible",
		Long: `pull makes an image ready to run: manifest, configuration and the indexes of its layers are fetched,
the layers' data stays in the registry until it is read. It returns when the image's root file
system can be mounted. remorad imports a layer without an index: it downloads and decodes the layer
straight into an image that it mounts. On the way it makes an index, which "snapctl index" can
publish for other nodes.

Registries on localhost are reached by plain HTTP; others as hosts.toml in remorad's
[registry] config_path says.`,
		Example: `  snapctl pull registry.example.com/redis:7-lazy
  snapctl --namespace k8s.io pull registry.example.com/redis:7-lazy
  snapctl pull --user robot --password-file /run/secrets/robot registry.example.com/private/app:1
  pass show robot | snapctl pull --user robot --password-stdin registry.example.com/private/app:1`,
		Args: exactly(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.pull(cmd.Context(), args[0], o) },
	}
	o.flags(c)
	return c
}

func (o *pullOptions) flags(c *cobra.Command) {
	o.loginOptions.flags(c, "the registry", ". remorad keeps both, readable by root alone")
	c.Flags().StringVar(&o.snapshotter, "snapshotter", "remora", "containerd's `name` for the snapshotter")
}

// registryFlags are those of commands that speak to the registry themselves.
func (o *pullOptions) registryFlags(c *cobra.Command) { o.loginOptions.flags(c, "the registry", "") }

func (a *app) pull(ctx context.Context, image string, o pullOptions) error {
	began := time.Now()
	ref, err := normalize(image)
	if err != nil {
		return err
	}
	remora, closer, err := a.dialRemora()
	if err != nil {
		return err
	}
	defer closer.Close()
	if err := control.Try(ctx, a.remora); err != nil { // before containerd is waited for
		return control.Explain(err, a.remora)
	}
	logins := new(registry.Logins)
	if err := a.login(ctx, remora, logins, registryHost(ref), o); err != nil {
		return err
	}
	// While remorad reads the manifest and begins with the layers, containerd is prepared.
	primed := make(chan *control.PrimeReply, 1)
	var priming sync.WaitGroup
	defer priming.Wait()
	pctx, stopPriming := context.WithCancel(ctx)
	defer stopPriming()
	priming.Go(func() {
		reply, err := remora.Prime(pctx, &control.PrimeRequest{Namespace: a.namespace, Ref: ref})
		if err != nil {
			reply = nil // containerd asks the registry itself, and says what is wrong
		}
		primed <- reply
	})
	ctx, containerd, err := a.dialContainerd(ctx)
	if err != nil {
		return err
	}
	defer containerd.Close()
	// A lease keeps what the pull makes until its root file system was mounted once.
	ctx, release, err := containerd.WithLease(ctx)
	if err != nil {
		return fmt.Errorf("containerd at %s: %w", a.containerd, err)
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }() // it would expire by itself
	known := <-primed
	options, err := reachedAs(ctx, remora, known)
	if err != nil {
		return control.Explain(err, a.remora)
	}
	options.Logins = logins
	var (
		early    *layerResolver
		img      client.Image
		resolver = primedResolver(registry.New(options).Resolver(ctx), ref, known)
	)
	err = a.untilReached(ctx, func() (err error) {
		early = &layerResolver{remora: remora, namespace: a.namespace, ref: ref, progress: a.importProgress()}
		img, err = containerd.Pull(ctx, ref,
			client.WithResolver(resolver),
			client.WithPullUnpack,
			client.WithPullSnapshotter(o.snapshotter),
			client.WithImageHandlerWrapper(early.wrapper(ctx)),
		)
		early.wait.Wait()
		if err != nil {
			return err
		}
		return mountable(ctx, containerd, img, o.snapshotter)
	})
	if err != nil {
		return explainPull(err, ref, o.snapshotter)
	}
	result, err := a.pulled(ctx, img, remora, early, o)
	if err != nil {
		return err
	}
	result.Seconds = time.Since(began).Seconds()
	return a.print(result, result.human)
}

// untilReached does something again while containerd has not reached a remorad that was just started.
// After each attempt to connect that failed, in whatever way, containerd refuses for up to 3.6 s before
// it makes another: 3 s and gRPC's jitter.
func (a *app) untilReached(ctx context.Context, do func() error) error {
	for try := 0; ; try++ {
		err := do()
		if try == reconnectTries || !errdefs.IsUnavailable(err) {
			return err
		}
		a.note("containerd has not reached remorad again yet, waiting")
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// importProgress says once in a while how far the imports are.
func (a *app) importProgress() func([]control.FetchProgress) {
	last := time.Now()
	return func(all []control.FetchProgress) {
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		var came, total int64
		for _, p := range all {
			came, total = came+p.Bytes, total+p.Total
		}
		if total > 0 {
			a.note("importing  %s of %s", size(came), size(total))
		}
	}
}

// pullFirst pulls an image for another command, whose output is not the pull's.
func (a *app) pullFirst(ctx context.Context, image string, o pullOptions) error {
	quiet := *a
	quiet.stdout, quiet.json = a.stderr, false
	return quiet.pull(ctx, image, o)
}

// login passes credentials on, to remorad and to this process's own requests.
func (a *app) login(ctx context.Context, remora *control.Client, logins *registry.Logins, host string, o pullOptions) error {
	if o.user == "" && !o.plainHTTP {
		return nil
	}
	l := o.loginOptions.login()
	if _, err := logins.Set(host, l); err != nil {
		return err
	}
	return control.Explain(remora.Login(ctx, &control.LoginRequest{Host: host, User: l.User, Secret: l.Secret, PlainHTTP: l.PlainHTTP}),
		a.remora)
}

func explainPull(err error, ref, snapshotter string) error {
	err = fmt.Errorf("pull %s: %w", ref, err)
	missing := errdefs.IsNotFound(err) || strings.Contains(err.Error(), "could not find") // which its client says without a type
	if missing && strings.Contains(err.Error(), "snapshotter") {
		return fmt.Errorf("%w: containerd does not know the snapshotter %q; add what \"remorad containerd-config\" prints to its configuration",
			err, snapshotter)
	}
	return err
}

// layerResolver tells remorad of the manifest as soon as containerd has it, and holds containerd back
// until every layer's index is here or has failed: then each layer's Prepare finds its answer.
type layerResolver struct {
	remora         *control.Client
	namespace, ref string
	progress       func([]control.FetchProgress)

	wait sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	byConfig map[digest.Digest]chan struct{}
	ordinary map[digest.Digest]string
}

// wrapper wraps containerd's handler of manifests and configurations. What it starts belongs to
// the pull, whose context is given: a handler's own ends with the handler.
func (r *layerResolver) wrapper(pull context.Context) func(images.Handler) images.Handler {
	return func(h images.Handler) images.Handler {
		h = snapshotters.AppendInfoHandlerWrapper(r.ref)(h)
		return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			children, err := h.Handle(ctx, desc)
			switch {
			case err != nil:
			case images.IsManifestType(desc.MediaType):
				r.start(pull, desc.Digest, children)
			case images.IsConfigType(desc.MediaType):
				r.await(ctx, desc.Digest)
			}
			return children, err
		})
	}
}

// await holds a configuration, and with it the unpacking, back until the layers are resolved.
func (r *layerResolver) await(ctx context.Context, config digest.Digest) {
	r.mu.Lock()
	done := r.byConfig[config]
	r.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (r *layerResolver) start(ctx context.Context, manifest digest.Digest, children []ocispec.Descriptor) {
	for _, c := range children {
		if !images.IsConfigType(c.MediaType) {
			continue
		}
		done := make(chan struct{})
		r.mu.Lock()
		if r.byConfig == nil {
			r.byConfig = map[digest.Digest]chan struct{}{}
		}
		r.byConfig[c.Digest] = done
		r.mu.Unlock()
		r.wait.Go(func() {
			defer close(done)
			reply, err := r.remora.Resolve(ctx, &control.ResolveRequest{Namespace: r.namespace, Manifest: manifest, Ref: r.ref}, r.progress)
			if err == nil { // otherwise Prepare finds out again, and says why
				r.mu.Lock()
				r.ordinary = reply.Ordinary
				r.mu.Unlock()
			}
		})
	}
}

// mountable returns when the image's root file system can be mounted: Mounts waits for it.
func mountable(ctx context.Context, c *client.Client, img client.Image, name string) error {
	diffIDs, err := img.RootFS(ctx)
	if err != nil {
		return err
	}
	sn := c.SnapshotService(name)
	key := "snapctl-ready-" + rand.Text()
	if _, err := sn.View(ctx, key, identity.ChainID(diffIDs).String()); err != nil {
		return err
	}
	_, err = sn.Mounts(ctx, key)
	return errors.Join(err, sn.Remove(context.WithoutCancel(ctx), key))
}

func (a *app) pulled(ctx context.Context, img client.Image, remora *control.Client, early *layerResolver, o pullOptions) (*pulledImage,
	error) {
	manifest, err := images.Manifest(ctx, img.ContentStore(), img.Target(), img.Platform())
	if err != nil {
		return nil, err
	}
	status, err := remora.Status(ctx)
	if err != nil {
		return nil, control.Explain(err, a.remora)
	}
	how := map[digest.Digest]string{}
	for _, l := range status.Layers {
		how[l.Digest] = howLazy
		if l.Format == "import" {
			how[l.Digest] = howImported
		}
	}
	p := &pulledImage{Image: img.Name(), Digest: img.Target().Digest, Snapshotter: o.snapshotter}
	for _, l := range manifest.Layers {
		one := pulledLayer{Digest: l.Digest, Size: l.Size, How: how[l.Digest], Lazy: how[l.Digest] == howLazy}
		if one.How == "" {
			one.How, one.Reason = howUnpacked, early.ordinary[l.Digest]
		}
		p.Layers = append(p.Layers, one)
	}
	return p, nil
}

func (p *pulledImage) human(w io.Writer) {
	fmt.Fprintf(w, "%s@%s is ready after %.2f s\n", p.Image, p.Digest, p.Seconds)
	for _, l := range p.Layers {
		how := l.How
		if l.Reason != "" {
			how += ": " + l.Reason
		}
		fmt.Fprintf(w, "  %s  %10s  %s\n", short(l.Digest), size(l.Size), how)
	}
}
