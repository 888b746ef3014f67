package cmdtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type contentInfo = content.Info

// SnapshotterName is what containerd calls the snapshotter.
const SnapshotterName = "remora"

// Labels by which containerd names the snapshot that a layer is to become, and the layer.
const (
	labelTarget = "containerd.io/snapshot.ref"
	labelLayer  = "containerd.io/snapshot/cri.layer-digest"
)

// Snapshots is containerd's native snapshotter with a remote one's answer on top: a layer of which Lazy is true is there
// already when containerd asks for it.
type Snapshots struct {
	snapshots.Snapshotter

	mu   sync.Mutex // guards the fields below
	lazy func(layer string) bool
	gone error // what every call that makes a snapshot returns instead
	made []snapshots.Info
}

func newSnapshots(ic *plugin.InitContext) (any, error) {
	ic.Meta.Exports = map[string]string{"root": "/var/lib/remora", "enable_remote_snapshot_annotations": "true"}
	ic.Meta.Capabilities = []string{"remap-ids"}
	sn, err := native.NewSnapshotter(ic.Properties[plugins.PropertyRootDir])
	return &Snapshots{Snapshotter: sn}, err
}

// Lazy says which layers, by digest, are there without being downloaded.
func (s *Snapshots) Lazy(is func(layer string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lazy = is
}

// Fail has every Prepare fail, as when nothing answers behind a proxy plugin. nil ends that.
func (s *Snapshots) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = err
}

// Made returns what was asked for since the beginning.
func (s *Snapshots) Made() []snapshots.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]snapshots.Info(nil), s.made...)
}

// Prepare implements snapshots.Snapshotter.
func (s *Snapshots) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var asked snapshots.Info
	for _, o := range opts {
		if err := o(&asked); err != nil {
			return nil, err
		}
	}
	asked.Name, asked.Parent = key, parent
	s.mu.Lock()
	s.made = append(s.made, asked)
	lazy, gone := s.lazy, s.gone
	s.mu.Unlock()
	if gone != nil {
		return nil, gone
	}
	mounts, err := s.Snapshotter.Prepare(ctx, key, parent, opts...)
	target := asked.Labels[labelTarget]
	if err != nil || target == "" || lazy == nil || !lazy(asked.Labels[labelLayer]) {
		return mounts, err
	}
	if err := s.Commit(ctx, target, key, opts...); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("target snapshot %q: %w", target, errdefs.ErrAlreadyExists)
}

// differ finds out what a layer's diffID is, and puts its files nowhere.
type differ struct{ db *metadata.DB }

func newDiffer(ic *plugin.InitContext) (any, error) {
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	return differ{db.(*metadata.DB)}, nil
}

// Apply implements diff.Applier.
func (d differ) Apply(ctx context.Context, desc ocispec.Descriptor, _ []mount.Mount, _ ...diff.ApplyOpt) (out ocispec.Descriptor,
	err error) {
	ra, err := d.db.ContentStore().ReaderAt(ctx, desc)
	if err != nil {
		return out, err
	}
	defer ra.Close()
	r, err := compression.DecompressStream(content.NewReader(ra))
	if err != nil {
		return out, err
	}
	defer r.Close()
	sum := digest.Canonical.Digester()
	n, err := io.Copy(sum.Hash(), r)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: sum.Digest(), Size: n}, err
}

// Compare implements diff.Comparer.
func (differ) Compare(context.Context, []mount.Mount, []mount.Mount, ...diff.Opt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errdefs.ErrNotImplemented
}

func writeBlob(t testing.TB, ctx context.Context, store content.Store, desc ocispec.Descriptor, data []byte, labels map[string]string) {
	t.Helper()
	err := content.WriteBlob(ctx, store, "test-"+desc.Digest.String(), bytes.NewReader(data), desc, content.WithLabels(labels))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// link gives an image its name, and has it keep what belongs to it.
func link(t testing.TB, ctx context.Context, store content.Store, all images.Store, name string, target ocispec.Descriptor) {
	t.Helper()
	handler := images.SetChildrenMappedLabels(store, images.ChildrenHandler(store), images.ChildGCLabels)
	if err := images.Walk(ctx, handler, target); err != nil {
		t.Fatal(err)
	}
	if _, err := all.Create(ctx, images.Image{Name: name, Target: target}); err != nil {
		t.Fatal(err)
	}
}
