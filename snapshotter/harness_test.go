package snapshotter

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A bed is a Snapshotter over a directory, with what it needs: a registry, containerd's content store,
// and a kernel that takes no root. Its end checks the state on disk.
type bed struct {
	*Snapshotter
	t      *testing.T
	ctx    context.Context
	root   string
	kernel *double
	origin *origin
	store  content.Store
	cached *cache.Cache

	// What the next Snapshotter is opened with.
	registry layers.Registry
	opts     Options
	limit    int64
	lock     *os.File
}

// beds counts those that have not ended.
var beds atomic.Int32

// newBed opens a Snapshotter over an origin, after change has had its way; change may be nil.
func newBed(t *testing.T, o *origin, change func(*bed)) *bed {
	t.Helper()
	b := &bed{
		t: t, ctx: namespaces.WithNamespace(t.Context(), "default"), root: filepath.Join(t.TempDir(), "root"), origin: o,
	}
	if o != nil {
		b.registry = layers.Remote{Registry: o.Client(t)}
	}
	b.kernel = newDouble(b.root)
	contents := filepath.Join(t.TempDir(), "content")
	store, err := local.NewLabeledStore(contents, &labels{})
	if err == nil {
		err = os.MkdirAll(filepath.Join(contents, "blobs", "sha256"), 0o700) // which an empty store lacks, and cannot walk
	}
	if err != nil {
		t.Fatal(err)
	}
	b.store = store
	b.opts = Options{Log: logOf(t), Layers: layers.Options{Formats: imagetest.Formats, ProofWait: time.Minute}} // however busy the machine is
	if change != nil {
		change(b)
	}
	beds.Add(1)
	t.Cleanup(func() {
		b.close()
		b.check()
		b.kernel.close()
		if beds.Add(-1) == 0 {
			noneLeft(t)
		}
	})
	b.open()
	return b
}

// open opens the Snapshotter as a new process does.
func (b *bed) open() {
	b.t.Helper()
	if err := b.tryOpen(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) tryOpen() (err error) {
	b.t.Helper()
	if b.lock, err = Lock(b.root); err != nil {
		return err
	}
	b.cached, err = cache.Open(filepath.Join(b.root, "cache"), cache.Options{
		Limit: b.limit, Policy: cache.Policy{Deadline: patience}, Memory: b.opts.Layers.Memory, Log: b.opts.Log,
	})
	if err != nil {
		return errors.Join(err, b.lock.Close())
	}
	b.opts.Exports, b.opts.Kernel = b.kernel, b.kernel
	b.Snapshotter, err = New(b.root, b.cached, b.registry, NewContentImages(b.store, nil, b.registries, b.opts.Layers.Memory), b.opts)
	if err != nil {
		return errors.Join(err, b.cached.Close(), b.lock.Close())
	}
	return nil
}

// registries are those of a host that the operator has configured.
func (b *bed) registries(hostname string) []string {
	if host, _, _ := strings.Cut(b.host(), ":"); host == hostname {
		return []string{b.host()}
	}
	return nil
}

// close ends the Snapshotter, and checks what the cache holds.
func (b *bed) close() {
	b.t.Helper()
	if b.Snapshotter == nil {
		return
	}
	if err := b.Close(); err != nil {
		b.t.Errorf("close: %v", err)
	}
	if err := b.cached.Check(); err != nil {
		b.t.Errorf("check the cache: %v", err)
	}
	if err := errors.Join(b.cached.Close(), b.lock.Close()); err != nil {
		b.t.Errorf("close: %v", err)
	}
	b.Snapshotter = nil
}

// restart ends the Snapshotter and opens it again.
func (b *bed) restart() {
	b.t.Helper()
	b.close()
	b.open()
}

// labels are what a content store knows of its blobs. Its methods are safe for concurrent use, as those of containerd's are.
type labels struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.all[d]), nil
}

func (l *labels) Set(d digest.Digest, all map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[digest.Digest]map[string]string{}
	}
	l.all[d] = maps.Clone(all)
	return nil
}

func (l *labels) Update(d digest.Digest, some map[string]string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[digest.Digest]map[string]string{}
	}
	if l.all[d] == nil {
		l.all[d] = map[string]string{}
	}
	maps.Copy(l.all[d], some)
	return maps.Clone(l.all[d]), nil
}

// ref is how a client names an image.
func (b *bed) ref(im *image) string { return b.host() + "/" + im.Path + ":" + im.Tag }

func (b *bed) host() string {
	if b.origin == nil {
		return "reg.test"
	}
	return b.origin.Host()
}

func (b *bed) repo(im *image) registry.Repository {
	return registry.Repository{Host: b.host(), Path: im.Path}
}

// fetch puts an image's manifest and configuration into the content store, as containerd does before it
// prepares the layers.
func (b *bed) fetch(im *image) {
	b.t.Helper()
	repo := b.repo(im)
	b.put(im.ConfigDesc, im.Config, nil)
	b.put(im.Target, im.Manifest, map[string]string{
		sourceLabelPrefix + repo.Hostname(): im.Path, configRefLabel: im.ConfigDesc.Digest.String(),
	})
}

func (b *bed) put(desc ocispec.Descriptor, data []byte, labels map[string]string) {
	b.t.Helper()
	err := content.WriteBlob(b.ctx, b.store, desc.Digest.String(), strings.NewReader(string(data)), desc, content.WithLabels(labels))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		b.t.Fatal(err)
	}
}

// prepare is containerd's request for an image's i-th layer on a parent.
func (b *bed) prepare(im *image, i int, parent string) ([]mount.Mount, error) {
	return b.Prepare(b.ctx, "extract-"+uniqueSuffix(), parent, snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:             im.ChainIDs[i].String(),
		snapshotters.TargetRefLabel:            b.ref(im),
		snapshotters.TargetManifestDigestLabel: im.Target.Digest.String(),
	}))
}

// claim prepares a layer that must be supplied here, and returns its snapshot's name.
func (b *bed) claim(im *image, i int, parent string) string {
	b.t.Helper()
	if mounts, err := b.prepare(im, i, parent); !errdefs.IsAlreadyExists(err) {
		b.t.Fatalf("layer %d: got %v, %v, want that it exists", i, mounts, err)
	}
	return b.named(im.ChainIDs[i], parent)
}

// decline prepares a layer that containerd must unpack itself.
func (b *bed) decline(im *image, i int, parent string) []mount.Mount {
	b.t.Helper()
	mounts, err := b.prepare(im, i, parent)
	if err != nil || len(mounts) == 0 {
		b.t.Fatalf("layer %d: got %v, %v, want mounts to unpack it in", i, mounts, err)
	}
	return mounts
}

// resolve returns when all layers of an image are open or have failed, with the reasons of those that have.
func (b *bed) resolve(im *image) map[digest.Digest]string {
	b.t.Helper()
	reasons, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), func([]Progress) {})
	if err != nil {
		b.t.Fatal(err)
	}
	return reasons
}

// named finds a committed snapshot by its chainID, as containerd does after "already exists".
func (b *bed) named(chainID digest.Digest, parent string) (name string) {
	b.t.Helper()
	err := b.Walk(b.ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Parent == parent && info.Kind == snapshots.KindCommitted {
			name = info.Name
		}
		return nil
	}, `labels."`+snapshots.LabelSnapshotRef+`"==`+chainID.String())
	if err != nil || name == "" {
		b.t.Fatalf("snapshot of %s on %q: %q, %v", chainID, parent, name, err)
	}
	return name
}

// pull claims all layers of an image and returns the topmost snapshot.
func (b *bed) pull(im *image) (top string) {
	b.t.Helper()
	b.fetch(im)
	for i := range im.Layers {
		top = b.claim(im, i, top)
	}
	return top
}

// run makes an active snapshot for a container, and returns its mounts once all layers are there.
func (b *bed) run(key, parent string) []mount.Mount {
	b.t.Helper()
	if _, err := b.Prepare(b.ctx, key, parent); err != nil {
		b.t.Fatal(err)
	}
	mounts, err := b.Mounts(b.ctx, key)
	if err != nil {
		b.t.Fatal(err)
	}
	return mounts
}

// dirs returns the directories of which mounts show a union, the topmost first.
func dirs(mounts []mount.Mount) (all []string) {
	for _, m := range mounts {
		if m.Type == "bind" {
			all = append(all, m.Source)
		}
		for _, opt := range m.Options {
			if upper, ok := strings.CutPrefix(opt, "upperdir="); ok {
				all = append(all, upper)
			}
			if lowers, ok := strings.CutPrefix(opt, "lowerdir="); ok {
				all = append(all, strings.Split(lowers, ":")...)
			}
		}
	}
	return all
}

// look reads a file as a container with these mounts does.
func (b *bed) look(mounts []mount.Mount, path string) ([]byte, error) {
	for _, dir := range dirs(mounts) {
		if dir, gate := strings.CutSuffix(dir, "/"); gate {
			if err := b.kernel.enter(dir); err != nil {
				return nil, err
			}
		}
		on := b.kernel.on(dir)
		if n := len(on); n > 0 && on[n-1].plain != "" {
			dir, on = on[n-1].plain, nil
		}
		if len(on) == 0 {
			p, err := os.ReadFile(filepath.Join(dir, path))
			if !errors.Is(err, os.ErrNotExist) {
				return p, err
			}
			continue
		}
		p, found, err := readImage(b.ctx, on[len(on)-1].dev, path)
		if found || err != nil {
			return p, err
		}
	}
	return nil, os.ErrNotExist
}

// readAs reads a file as a process does.
func (b *bed) readAs(mounts []mount.Mount, path string, pid int) ([]byte, error) {
	with := *b
	with.ctx = blockdev.WithCaller(b.ctx, pid)
	return with.look(mounts, path)
}

// sees fails the test unless a container with these mounts reads a file right.
func (b *bed) sees(mounts []mount.Mount, path string, want []byte) {
	b.t.Helper()
	if got, err := b.look(mounts, path); err != nil || string(got) != string(want) {
		b.t.Errorf("%s: got %d bytes, %v, want %d", path, len(got), err, len(want))
	}
}

// mode returns the mode of what a layer that is supplied here has at a path.
func (b *bed) mode(mounts []mount.Mount, path string) uint32 {
	b.t.Helper()
	for _, dir := range dirs(mounts) {
		on := b.kernel.on(dir)
		if len(on) == 0 {
			continue
		}
		tree, err := erofs.NewReader(readerAt{b.ctx, on[len(on)-1].dev}, 1<<40)
		if err != nil {
			b.t.Fatal(err)
		}
		if n, found, _, _, err := tree.Find(path); err != nil {
			b.t.Fatal(err)
		} else if found {
			return n.Mode
		}
	}
	b.t.Fatalf("%s: not found", path)
	return 0
}

// readImage reads a file of an image through a device.
func readImage(ctx context.Context, dev blockdev.Device, path string) (p []byte, found bool, err error) {
	if dev == nil {
		return nil, false, errors.New("nobody serves this mount")
	}
	tree, err := erofs.NewReader(readerAt{ctx, dev}, 1<<40)
	if err != nil {
		return nil, false, err
	}
	n, found, _, _, err := tree.Find(path)
	if err != nil || !found {
		return nil, false, err
	}
	p = make([]byte, n.Size)
	if len(p) > 0 {
		_, err = readerAt{ctx, dev}.ReadAt(p, n.Data)
	}
	return p, true, err
}

// readerAt reads a device with a context.
type readerAt struct {
	ctx context.Context // of one test
	blockdev.Device
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Device.ReadAt(r.ctx, p, off)
	if err == nil && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// layerStatus returns what status says of a layer; there is one snapshot of it.
func (b *bed) statusOf(l layer) LayerStatus {
	b.t.Helper()
	for _, st := range b.Status().Layers {
		if st.Digest == l.Digest() {
			return st
		}
	}
	b.t.Fatalf("status does not name layer %s", l.Digest())
	return LayerStatus{}
}

// id returns a snapshot's number, which names its directory.
func (b *bed) id(name string) (id string) {
	b.t.Helper()
	err := b.Snapshotter.store.WithTransaction(b.ctx, false, func(ctx context.Context) (err error) {
		id, _, _, err = storage.GetInfo(ctx, name)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// unpack writes files where mounts of an active snapshot take them, and commits it.
func (b *bed) unpack(key, name string, mounts []mount.Mount, members ...member) {
	b.t.Helper()
	write(b.t, dirs(mounts)[0], members)
	if err := b.Commit(b.ctx, name, key); err != nil {
		b.t.Fatal(err)
	}
}

// write writes files below a directory.
func write(t *testing.T, dir string, members []member) {
	t.Helper()
	for _, m := range members {
		path := filepath.Join(dir, m.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, m.Body, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}
