package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
	orasremote "oras.land/oras-go/v2/registry/remote"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/remote/registry"
)

// A target is where an image is, or goes to.
type target interface {
	oras.Target
	// Name is the image's name there, for Resolve and Tag.
	Name() string
	// Place names the repository in a registry, or is "".
	Place() string
	Close() error
}

// A mounter can take blobs over from other repositories.
type mounter interface {
	// MountFrom takes a blob over from the first of the places that is of the same registry and has it.
	MountFrom(ctx context.Context, desc ocispec.Descriptor, places []string) (bool, error)
}

// openTarget opens what SRC or DST names. dir is for files on the way.
func (a *app) openTarget(ctx context.Context, name string, o convertOptions, write bool, dir string) (target, error) {
	if rest, ok := strings.CutPrefix(name, "oci:"); ok {
		return openLayout(ctx, name, rest, write, o.dryRun, dir)
	}
	if rest, ok := strings.CutPrefix(name, "docker-archive:"); ok {
		return openArchive(ctx, rest, write, dir)
	}
	if rest, ok := strings.CutPrefix(name, "containerd:"); ok {
		return a.openContainerd(ctx, rest)
	}
	ref, err := normalize(name)
	if err != nil {
		return nil, err
	}
	return a.openRegistry(ctx, ref, o.loginOptions)
}

// layoutTarget is an OCI layout on disk.
type layoutTarget struct {
	*oci.Store
	tag string
}

func openLayout(ctx context.Context, name, rest string, write, dryRun bool, work string) (target, error) {
	dir, tag, ok := cutLast(rest, ":")
	if !ok || dir == "" || tag == "" {
		return nil, cli.Usagef("%q: want oci:DIR:TAG", name)
	}
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil && !write {
		return nil, fmt.Errorf("%s: %w", name, err)
	} else if err != nil && dryRun {
		dir = filepath.Join(work, "layout") // nothing is there, and nothing is made
	}
	store, err := oci.NewWithContext(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &layoutTarget{store, tag}, nil
}

func (t *layoutTarget) Name() string  { return t.tag }
func (t *layoutTarget) Place() string { return "" }
func (t *layoutTarget) Close() error  { return nil }

// registryOptions are remorad's where it runs, so that both reach registries alike, and
// otherwise those of a user's Docker.
func (a *app) registryOptions(ctx context.Context) registry.Options {
	if remora, closer, err := a.dialRemora(); err == nil {
		defer closer.Close()
		if st, err := remora.Status(ctx); err == nil {
			return optionsOf(&st.Registry)
		}
	}
	o := registry.Options{ConfigPath: []string{"/etc/containerd/certs.d"}}
	if home, err := os.UserHomeDir(); err == nil {
		o.DockerConfig = filepath.Join(home, ".docker", "config.json")
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		o.DockerConfig = dir
	}
	return o
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// registryTarget is a repository, reached as containerd reaches it. It is read from the hosts that
// serve it, mirrors among them, and written to the one that takes pushes.
type registryTarget struct {
	ref      string
	repo     registry.Repository
	registry *registry.Registry
	write    *orasremote.Repository // nil until it is needed
}

func (a *app) openRegistry(ctx context.Context, ref string, o loginOptions) (*registryTarget, error) {
	repo, err := registry.ParseRepository(ref)
	if err != nil {
		return nil, err
	}
	logins := new(registry.Logins)
	if _, err := logins.Set(repo.Host, o.login()); err != nil {
		return nil, err
	}
	options := a.registryOptions(ctx)
	options.Logins = logins
	t := &registryTarget{ref: ref, repo: repo, registry: registry.New(options)}
	t.write, err = t.registry.Writable(ctx, repo)
	return t, err
}

func (t *registryTarget) Name() string  { return t.ref }
func (t *registryTarget) Place() string { return t.repo.String() }
func (t *registryTarget) Close() error  { return nil }

// Resolve implements oras.Target.
func (t *registryTarget) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	_, desc, err := t.registry.Resolver(ctx).Resolve(ctx, ref)
	return desc, err
}

// Fetch implements oras.Target.
func (t *registryTarget) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := t.registry.Resolver(ctx).Fetcher(ctx, t.ref)
	if err != nil {
		return nil, err
	}
	return f.Fetch(ctx, desc)
}

// Exists implements oras.Target.
func (t *registryTarget) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	return t.write.Exists(ctx, desc)
}

// Push stores a blob, or a manifest by its digest.
func (t *registryTarget) Push(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	return t.write.Push(ctx, desc, r)
}

// Tag gives a manifest, which was pushed by digest, its name.
func (t *registryTarget) Tag(ctx context.Context, desc ocispec.Descriptor, ref string) error {
	_, tag, ok := cutLast(ref, ":")
	if at := strings.Contains(ref, "@"); at || !ok || strings.Contains(tag, "/") {
		return cli.Usagef("%s: a destination needs a tag", ref)
	}
	return t.write.Tag(ctx, desc, tag)
}

var errNotMounted = errors.New("not mounted")

// MountFrom implements mounter.
func (t *registryTarget) MountFrom(ctx context.Context, desc ocispec.Descriptor, places []string) (bool, error) {
	if images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) {
		return false, nil
	}
	for _, place := range places {
		from, ok := strings.CutPrefix(place, t.repo.Host+"/")
		if !ok || from == t.repo.Path {
			continue
		}
		// A registry that cannot begins an upload instead, which is left.
		err := t.write.Mount(ctx, desc, from, func() (io.ReadCloser, error) { return nil, errNotMounted })
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, errNotMounted) && !errors.Is(err, errdef.ErrNotFound) && !errdefs.IsNotFound(err) {
			return false, nil // no right to read there, say: it is uploaded
		}
	}
	return false, nil
}
