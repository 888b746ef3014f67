package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// storedBlobs are the blobs in containerd's content store.
type storedBlobs struct {
	containerd *client.Client
	// configured returns the registries on a host, with their ports, that the operator has configured; nil for none.
	configured func(hostname string) []string
}

// Blob implements snapshotter.Blobs.
func (b *storedBlobs) Blob(ctx context.Context, namespace string, d digest.Digest) (content.ReaderAt, error) {
	return b.containerd.ContentStore().ReaderAt(namespaces.WithNamespace(ctx, namespace), ocispec.Descriptor{Digest: d})
}

// From implements snapshotter.Blobs. containerd's labels have no ports, so they say nothing of a repository where another one of the
// same path is known on another port of the host.
func (b *storedBlobs) From(ctx context.Context, namespace string, d digest.Digest, repo registry.Repository) bool {
	ctx = namespaces.WithNamespace(ctx, namespace)
	info, err := b.containerd.ContentStore().Info(ctx, d)
	paths := strings.Split(info.Labels[labels.LabelDistributionSource+"."+repo.Hostname()], ",")
	return err == nil && slices.Contains(paths, repo.Path) && !b.ambiguous(ctx, repo)
}

// ambiguous reports whether another port of a repository's host may have a repository of the same path.
func (b *storedBlobs) ambiguous(ctx context.Context, repo registry.Repository) bool {
	if b.configured != nil && slices.ContainsFunc(b.configured(repo.Hostname()), func(host string) bool { return host != repo.Host }) {
		return true
	}
	all, err := b.containerd.ImageService().List(ctx)
	return err != nil || slices.ContainsFunc(all, func(img images.Image) bool {
		named, err := registry.ParseRepository(img.Name)
		return err == nil && named.Host != repo.Host && named.Hostname() == repo.Hostname() && named.Path == repo.Path
	})
}

// keptFor is how long a blob stays that no image refers to yet.
const keptFor = time.Hour

// KeepBlob implements snapshotter.Blobs.
func (b *storedBlobs) KeepBlob(ctx context.Context, namespace string, desc ocispec.Descriptor, repo registry.Repository,
	diffID digest.Digest, r io.Reader) error {
	ctx, _, err := b.containerd.WithLease(namespaces.WithNamespace(ctx, namespace), leases.WithRandomID(), leases.WithExpiration(keptFor))
	if err != nil {
		return err
	}
	return putBlob(ctx, b.containerd.ContentStore(), desc, repo, diffID, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// putBlob adds a layer's blob to a content store, unless it is there.
func putBlob(ctx context.Context, store content.Store, desc ocispec.Descriptor, repo registry.Repository, diffID digest.Digest,
	write func(io.Writer) error) error {
	about := content.WithLabels(map[string]string{
		labels.LabelDistributionSource + "." + repo.Hostname(): repo.Path, labels.LabelUncompressed: diffID.String(),
	})
	err := withWriter(ctx, store, desc, func(w content.Writer) error {
		st, err := w.Status()
		if err == nil && st.Offset == desc.Size { // another namespace has it, or an earlier try had all of it
			if err = w.Commit(ctx, desc.Size, desc.Digest, about); err == nil || errdefs.IsAlreadyExists(err) {
				return nil
			}
		}
		return cmp.Or(err, errIncomplete)
	})
	if err == nil {
		return nil
	}
	return withWriter(ctx, store, desc, func(w content.Writer) error {
		if err := w.Truncate(0); err != nil { // what an earlier try left
			return err
		}
		buf := bufio.NewWriterSize(onlyWriter{w}, 1<<20) // each write is a request
		if err := write(buf); err != nil {
			return err
		}
		if err := buf.Flush(); err != nil {
			return err
		}
		err := w.Commit(ctx, desc.Size, desc.Digest, about)
		if errdefs.IsFailedPrecondition(err) { // size or digest
			return fmt.Errorf("the registry serves another blob under this digest: %w", err)
		}
		return err
	})
}

var errIncomplete = errors.New("not all of the blob is there")

// withWriter has a blob written that a content store lacks.
func withWriter(ctx context.Context, store content.Store, desc ocispec.Descriptor, write func(content.Writer) error) error {
	w, err := content.OpenWriter(ctx, store, content.WithRef("remora-fetch-"+desc.Digest.String()), content.WithDescriptor(desc))
	if err == nil {
		err = write(w)
		w.Close() // what counts is whether it was committed
	}
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// onlyWriter hides a content writer's other methods.
type onlyWriter struct{ io.Writer }
