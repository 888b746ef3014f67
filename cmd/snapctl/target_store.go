package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/internal/durable"
)

// storeTarget is an image in a content store: containerd's, or one that holds an archive's content.
type storeTarget struct {
	store content.Store
	name  string
	// find returns the image that a name means, tag gives one a name.
	find  func(ctx context.Context, name string) (ocispec.Descriptor, error)
	tag   func(ctx context.Context, name string, desc ocispec.Descriptor) error
	close func() error
	// context makes a context one of the store's.
	context func(context.Context) context.Context
}

func (t *storeTarget) Name() string  { return t.name }
func (t *storeTarget) Place() string { return "" }
func (t *storeTarget) Close() error  { return t.close() }

// Resolve implements oras.Target.
func (t *storeTarget) Resolve(ctx context.Context, name string) (ocispec.Descriptor, error) {
	return t.find(t.context(ctx), name)
}

// Exists implements oras.Target.
func (t *storeTarget) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	_, err := t.store.Info(t.context(ctx), desc.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Fetch implements oras.Target.
func (t *storeTarget) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ra, err := t.store.ReaderAt(t.context(ctx), ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %w (an image that was pulled lazily has no blobs: snapctl fetch brings them)", desc.Digest,
			errdef.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
}

// Push implements oras.Target.
func (t *storeTarget) Push(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	err := content.WriteBlob(t.context(ctx), t.store, "snapctl-convert-"+desc.Digest.String(), r, desc)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Tag implements oras.Target. Everything that the image consists of is linked from it first, so that
// nothing is collected.
func (t *storeTarget) Tag(ctx context.Context, desc ocispec.Descriptor, name string) error {
	ctx = t.context(ctx)
	link := images.SetChildrenMappedLabels(t.store, images.ChildrenHandler(t.store), images.ChildGCLabels)
	if err := images.Walk(ctx, link, desc); err != nil {
		return err
	}
	return t.tag(ctx, name, desc)
}

// openContainerd opens an image of containerd's, or a place for one.
func (a *app) openContainerd(ctx context.Context, name string) (target, error) {
	ref, err := normalize(name)
	if err != nil {
		return nil, err
	}
	nctx, c, err := a.dialContainerd(ctx)
	if err != nil {
		return nil, err
	}
	// What is written is kept until the image has its name.
	lease, release, err := c.WithLease(nctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("containerd at %s: %w", a.containerd, err), c.Close())
	}
	leased := func(ctx context.Context) context.Context { return mergedContext{ctx, lease} }
	return &storeTarget{
		store: c.ContentStore(), name: ref, context: leased,
		find: func(ctx context.Context, name string) (ocispec.Descriptor, error) {
			img, err := c.ImageService().Get(ctx, name)
			if err != nil {
				return ocispec.Descriptor{}, fmt.Errorf("image %s in namespace %s: %w", name, a.namespace, err)
			}
			return img.Target, nil
		},
		tag: func(ctx context.Context, name string, desc ocispec.Descriptor) error {
			img := images.Image{Name: name, Target: desc}
			_, err := c.ImageService().Create(ctx, img)
			if errdefs.IsAlreadyExists(err) {
				_, err = c.ImageService().Update(ctx, img, "target")
			}
			return err
		},
		close: func() error { return errors.Join(release(context.WithoutCancel(lease)), c.Close()) },
	}, nil
}

// mergedContext ends as one context does and has the values of another too.
type mergedContext struct {
	context.Context
	values context.Context
}

// Value implements context.Context.
func (m mergedContext) Value(key any) any {
	if v := m.Context.Value(key); v != nil {
		return v
	}
	return m.values.Value(key)
}

// openArchive opens a file that docker save has written, or is to be written. Its content is kept in
// dir meanwhile.
func openArchive(ctx context.Context, rest string, write bool, dir string) (_ target, err error) {
	path, ref, err := archiveName(rest, write)
	if err != nil {
		return nil, err
	}
	dir, err = os.MkdirTemp(dir, "archive-")
	if err != nil {
		return nil, err
	}
	store, err := local.NewStore(dir)
	if err != nil {
		return nil, err
	}
	t := &storeTarget{
		store: store, name: ref, context: func(ctx context.Context) context.Context { return ctx },
		close: func() error { return os.RemoveAll(dir) },
	}
	if write {
		t.tag = func(ctx context.Context, name string, desc ocispec.Descriptor) error {
			return writeArchive(ctx, store, path, name, desc)
		}
		// Links between blobs need a store with labels, and nothing is collected here.
		return &plainStore{t}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	index, err := archive.ImportIndex(ctx, store, f)
	if err != nil {
		return nil, fmt.Errorf("%s is no archive of an image: %w", path, err)
	}
	t.find = func(ctx context.Context, name string) (ocispec.Descriptor, error) {
		return inArchive(ctx, store, index, path, name)
	}
	return t, nil
}

// plainStore is a store whose blobs have no labels.
type plainStore struct{ *storeTarget }

// Tag implements oras.Target.
func (p *plainStore) Tag(ctx context.Context, desc ocispec.Descriptor, name string) error {
	return p.tag(ctx, name, desc)
}

// archiveName splits FILE[:REF].
func archiveName(rest string, write bool) (path, ref string, err error) {
	path, name, ok := strings.Cut(rest, ":")
	if path == "" {
		return "", "", cli.Usagef("want docker-archive:FILE or docker-archive:FILE:REF")
	}
	if !ok {
		name = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)) + ":latest"
		if !write {
			return path, "", nil
		}
	}
	ref, err = normalize(strings.ToLower(name))
	return path, ref, err
}

// inArchive finds an image of an archive. Without a name there must be one alone.
func inArchive(ctx context.Context, store content.Provider, index ocispec.Descriptor, path, name string) (ocispec.Descriptor, error) {
	all, err := images.Children(ctx, store, index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var names []string
	seen := map[digest.Digest]bool{}
	for _, m := range all {
		is := m.Annotations[images.AnnotationImageName]
		if name != "" && is == name {
			return m, nil
		}
		names = append(names, is)
		seen[m.Digest] = true
	}
	if name == "" && len(seen) == 1 {
		return all[0], nil
	}
	if name == "" {
		return ocispec.Descriptor{}, fmt.Errorf("%s holds several images, name one: docker-archive:%s:REF with REF one of %v", path, path, names)
	}
	return ocispec.Descriptor{}, fmt.Errorf("%s holds no image %s, only %v", path, name, names)
}

// writeArchive writes a file that docker load and ctr images import read. It appears when it is whole.
func writeArchive(ctx context.Context, store content.InfoReaderProvider, path, name string, desc ocispec.Descriptor) (err error) {
	f, err := durable.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := archive.Export(ctx, store, f, archive.WithManifest(desc, name), archive.WithAllPlatforms()); err != nil {
		return err
	}
	return f.Commit()
}
