package snapshotter

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A daemon is containerd's own metadata over whatever Snapshotter a bed has: it gives us names of its own.
type daemon struct {
	snapshots.Snapshotter
	b  *bed
	db *metadata.DB
	// committing is called when a commit is done here, and not yet in containerd; nil for nothing.
	committing func()
}

// A backend is a bed's Snapshotter as containerd calls it.
type backend struct {
	*bed
	d *daemon
}

func (x backend) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := x.bed.Commit(ctx, name, key, opts...)
	if x.d.committing != nil {
		x.d.committing()
	}
	return err
}

// newDaemon has a bed's Snapshotters ask containerd's metadata, from the next one on.
func newDaemon(t *testing.T, b *bed) *daemon {
	t.Helper()
	file, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	d := &daemon{b: b}
	d.db = metadata.NewDB(file, b.store, map[string]snapshots.Snapshotter{"remora": backend{b, d}})
	if err := d.db.Init(b.ctx); err != nil {
		t.Fatal(err)
	}
	d.Snapshotter = d.db.Snapshotter("remora")
	b.opts.Metadata = d
	return d
}

// Namespaces implements Metadata.
func (d *daemon) Namespaces(ctx context.Context) (all []string, err error) {
	err = d.db.View(func(tx *bolt.Tx) error {
		all, err = metadata.NewNamespaceStore(tx).List(ctx)
		return err
	})
	return all, err
}

// Walk implements Metadata.
func (d *daemon) Walk(ctx context.Context, fn snapshots.WalkFunc) error {
	return d.Snapshotter.Walk(ctx, fn)
}

// pull is what containerd does of a pull in a namespace, and returns the chainID of the top. What we do not supply it unpacks.
func (d *daemon) pull(namespace string, im *image, files map[int][]member) string {
	d.b.t.Helper()
	d.b.fetch(im)
	return d.unpack(namespace, im, files)
}

// unpack is what containerd does of an image's layers once it has the manifest and the configuration.
func (d *daemon) unpack(namespace string, im *image, files map[int][]member) string {
	b := d.b
	b.t.Helper()
	ctx := namespaces.WithNamespace(b.t.Context(), namespace)
	parent := ""
	for i, id := range im.ChainIDs {
		key := "extract-" + uniqueSuffix() + " " + id.String()
		mounts, err := d.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:             id.String(),
			snapshotters.TargetRefLabel:            b.ref(im),
			snapshotters.TargetManifestDigestLabel: im.Target.Digest.String(),
		}))
		switch members, isUnpacked := files[i]; {
		case errdefs.IsAlreadyExists(err):
		case err != nil || !isUnpacked:
			b.t.Fatalf("layer %d: %v, %v", i, mounts, err)
		default:
			write(b.t, dirs(mounts)[0], members)
			if err := d.Commit(ctx, id.String(), key); err != nil {
				b.t.Fatal(err)
			}
		}
		parent = id.String()
	}
	return parent
}

// run starts a container of a namespace on a chainID, which must show files.
func (d *daemon) run(namespace, chainID string, want ...member) {
	b := d.b
	b.t.Helper()
	ctx := namespaces.WithNamespace(b.t.Context(), namespace)
	key := "container-" + uniqueSuffix()
	if _, err := d.Prepare(ctx, key, chainID); err != nil {
		b.t.Fatal(err)
	}
	mounts, err := d.Mounts(ctx, key)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, m := range want {
		b.sees(mounts, m.Name, m.Body)
	}
}
