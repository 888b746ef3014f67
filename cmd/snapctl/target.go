package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/remote"
)

// openTarget opens what SRC or DST names, and returns the name in it.
func (a *app) openTarget(ctx context.Context, name string, o convertOptions, write bool) (oras.Target, string, error) {
	if rest, ok := strings.CutPrefix(name, "oci:"); ok {
		dir, tag, ok := cutLast(rest, ":")
		if !ok || dir == "" || tag == "" {
			return nil, "", cli.Usagef("%q: want oci:DIR:TAG", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil && !write {
			return nil, "", fmt.Errorf("%s: %w", name, err)
		}
		store, err := oci.NewWithContext(ctx, dir)
		return store, tag, err
	}
	ref, err := normalize(name)
	if err != nil {
		return nil, "", err
	}
	logins := new(remote.Logins)
	if _, err := setLogin(logins, registryHost(ref), o.user, o.plainHTTP); err != nil {
		return nil, "", err
	}
	options := a.registryOptions(ctx)
	options.Logins = logins
	return &registryTarget{ref: ref, registry: remote.NewRegistry(options)}, ref, nil
}

// registryOptions are remorad's where it runs, so that both reach registries alike, and
// otherwise those of a user's Docker.
func (a *app) registryOptions(ctx context.Context) remote.Options {
	if remora, closer, err := a.dialRemora(); err == nil {
		defer closer.Close()
		if st, err := remora.Status(ctx); err == nil {
			return remote.Options{ConfigPath: st.Registry.ConfigPath, DockerConfig: st.Registry.DockerConfig}
		}
	}
	o := remote.Options{ConfigPath: []string{"/etc/containerd/certs.d"}}
	if home, err := os.UserHomeDir(); err == nil {
		o.DockerConfig = filepath.Join(home, ".docker", "config.json")
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		o.DockerConfig = dir
	}
	return o
}

// setLogin reads --user and --plain-http and remembers them for a host.
func setLogin(logins *remote.Logins, host, user string, plainHTTP bool) (remote.Login, error) {
	l, err := parseLogin(user, plainHTTP)
	if err == nil {
		_, err = logins.Set(host, l)
	}
	return l, err
}

// parseLogin reads --user and --plain-http.
func parseLogin(user string, plainHTTP bool) (remote.Login, error) {
	name, secret, ok := strings.Cut(user, ":")
	if !ok && name != "" {
		secret = os.Getenv("SNAPCTL_PASSWORD")
		if secret == "" {
			return remote.Login{}, cli.Usagef("--user without a password: write --user USER:PASSWORD or set SNAPCTL_PASSWORD")
		}
	}
	return remote.Login{User: name, Secret: secret, PlainHTTP: plainHTTP}, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// registryTarget is a repository as oras has it, reached as containerd reaches it.
type registryTarget struct {
	ref      string
	registry *remote.Registry
}

var _ oras.Target = (*registryTarget)(nil)

func (t *registryTarget) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	_, desc, err := t.registry.Resolver(ctx).Resolve(ctx, ref)
	return desc, err
}

func (t *registryTarget) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := t.registry.Resolver(ctx).Fetcher(ctx, t.ref)
	if err != nil {
		return nil, err
	}
	return f.Fetch(ctx, desc)
}

// Exists always answers no: Push finds out with the same request that begins the upload.
func (t *registryTarget) Exists(context.Context, ocispec.Descriptor) (bool, error) { return false, nil }

// Push stores a blob, or a manifest by its digest.
func (t *registryTarget) Push(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	return t.push(ctx, t.untagged(desc.Digest), desc, r)
}

func (t *registryTarget) push(ctx context.Context, ref string, desc ocispec.Descriptor, r io.Reader) error {
	// A resolver remembers what it has pushed by digest alone, and would not push a manifest
	// once more under its tag: hence a new one each time.
	p, err := t.registry.Resolver(ctx).Pusher(ctx, ref)
	if err != nil {
		return err
	}
	w, err := p.Push(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	err = content.Copy(ctx, w, r, desc.Size, desc.Digest)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Tag gives a manifest, which was pushed by digest, its name.
func (t *registryTarget) Tag(ctx context.Context, desc ocispec.Descriptor, ref string) error {
	r, err := t.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer r.Close()
	return t.push(ctx, ref, desc, r)
}

// untagged is the reference of a blob in the same repository.
func (t *registryTarget) untagged(d digest.Digest) string {
	name := t.ref
	if at := strings.LastIndex(name, "@"); at > 0 {
		name = name[:at]
	}
	if colon := strings.LastIndex(name, ":"); colon > strings.LastIndex(name, "/") {
		name = name[:colon]
	}
	return name + "@" + d.String()
}
