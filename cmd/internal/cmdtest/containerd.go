package cmdtest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	// What is served here: containerd's own code, over a content store and a database in a directory of the test's.
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
)

// Containerd is containerd without what needs root: its services for content, images, leases, snapshots, containers and so
// on are its own. Stand-ins are a snapshotter that is called remora (see Snapshots), a differ that mounts nothing, and
// processes that run beside the test instead of in a container.
type Containerd struct {
	Socket    string
	Snapshots *Snapshots
	DB        *metadata.DB
	tasks     *tasks
}

// part makes a stand-in one of containerd's plugins.
func part(t plugin.Type, id string, make func(*plugin.InitContext) (any, error), requires ...plugin.Type) {
	registry.Register(&plugin.Registration{Type: t, ID: id, Requires: requires, InitFn: make})
}

func init() {
	part(plugins.SnapshotPlugin, SnapshotterName, newSnapshots)
	part(plugins.DiffPlugin, "walking", newDiffer, plugins.MetadataPlugin) // by the name that the diff service looks for
	part(plugins.GCPlugin, "scheduler", func(ic *plugin.InitContext) (any, error) {
		db, err := ic.GetSingle(plugins.MetadataPlugin)
		return collector{db}, err
	}, plugins.MetadataPlugin)
	part(plugins.GRPCPlugin, "tasks", newTasks, plugins.MetadataPlugin)
}

// collector collects garbage when it is told to, and only then.
type collector struct{ db any }

func (c collector) ScheduleAndWait(ctx context.Context) (gc.Stats, error) {
	return c.db.(*metadata.DB).GarbageCollect(ctx)
}

// NewContainerd starts containerd's services on a socket, which end with the test.
func NewContainerd(t testing.TB, socket string) *Containerd {
	t.Helper()
	if err := log.SetLevel("error"); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "containerd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ctx, stop := context.WithCancel(context.Background())
	server := grpc.NewServer()
	set := plugin.NewPluginSet()
	var closers []func()
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		ic := plugin.NewContext(ctx, set, map[string]string{
			plugins.PropertyRootDir: filepath.Join(dir, r.URI()), plugins.PropertyStateDir: filepath.Join(dir, "state", r.URI()),
			plugins.PropertyGRPCAddress: socket,
		})
		ic.Config = r.Config
		p := r.Init(ic)
		if err := set.Add(p); err != nil {
			t.Fatal(err)
		}
		instance, err := p.Instance()
		if err != nil {
			t.Fatalf("%s: %v", r.URI(), err)
		}
		if s, ok := instance.(interface{ Register(*grpc.Server) error }); ok {
			if err := s.Register(server); err != nil {
				t.Fatal(err)
			}
		}
		if c, ok := instance.(interface{ Close() error }); ok {
			closers = append(closers, func() {
				if err := c.Close(); err != nil {
					t.Errorf("%s: %v", r.URI(), err)
				}
			})
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, c := range slices.Backward(closers) {
			c()
		}
		stop()
	})
	c := &Containerd{Socket: socket}
	for _, p := range set.GetAll() {
		instance, err := p.Instance()
		if err != nil {
			t.Fatal(err)
		}
		switch v := instance.(type) {
		case *Snapshots:
			c.Snapshots = v
		case *metadata.DB:
			c.DB = v
		case *tasks:
			c.tasks = v
		}
	}
	return c
}

// Blobs returns the digests in the content store of the default namespace.
func (c *Containerd) Blobs(t testing.TB) (all []digest.Digest) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), namespaces.Default)
	if err := c.DB.ContentStore().Walk(ctx, func(i contentInfo) error {
		all = append(all, i.Digest)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// Put stores an image, as a pull of it by its full name does, in the default namespace.
func (c *Containerd) Put(t testing.TB, name string, img *Image) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), namespaces.Default)
	store := c.DB.ContentStore()
	host, path, _ := strings.Cut(name, "/")
	source := map[string]string{labels.LabelDistributionSource + "." + host: path[:strings.LastIndex(path, ":")]}
	for d, doc := range img.Docs {
		writeBlob(t, ctx, store, ocispec.Descriptor{MediaType: doc.MediaType, Digest: d, Size: int64(len(doc.Data))}, doc.Data, source)
	}
	link(t, ctx, store, metadata.NewImageStore(c.DB), name, img.Target)
}

// Target returns the target of an image of the default namespace.
func (c *Containerd) Target(t testing.TB, name string) ocispec.Descriptor {
	t.Helper()
	img, err := metadata.NewImageStore(c.DB).Get(namespaces.WithNamespace(t.Context(), namespaces.Default), name)
	if err != nil {
		t.Fatal(err)
	}
	return img.Target
}

// Collect removes from the store what no image or lease refers to.
func (c *Containerd) Collect(t testing.TB) {
	t.Helper()
	if _, err := c.DB.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Containers returns the ids of the containers in the default namespace.
func (c *Containerd) Containers(t testing.TB) (ids []string) {
	t.Helper()
	all, err := metadata.NewContainerStore(c.DB).List(namespaces.WithNamespace(t.Context(), namespaces.Default))
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		ids = append(ids, one.ID)
	}
	return ids
}

// Running returns the ids of the containers whose process runs.
func (c *Containerd) Running() []string { return c.tasks.running() }
