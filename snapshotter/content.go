package snapshotter

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A Content is the part of containerd's content store that we read. The namespace is in the
// context.
type Content interface {
	content.InfoProvider
	content.Provider
	Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error
}

// An ImageLister lists containerd's images. The namespace is in the context.
type ImageLister interface {
	List(ctx context.Context, filters ...string) ([]images.Image, error)
}

const (
	sourceLabelPrefix = "containerd.io/distribution.source."
	configRefLabel    = "containerd.io/gc.ref.content.config"
	maxManifest       = 4 << 20  // bytes; containerd's own limit is the same
	maxRemembered     = 16 << 20 // bytes of manifests kept in memory
	maxOutlines       = 8 << 20  // bytes of outlines
	// What is usual is read without waiting for others' memory; what is larger takes so many times its bytes, decoded.
	usualDocument = 128 << 10
	decodedTimes  = 4
	maxLayers     = 1024
)

// ContentImages finds images in a content store.
type ContentImages struct {
	store      Content
	named      ImageLister
	configured func(hostname string) []string
	memory     *memory.Budget

	mu       sync.Mutex // guards the fields below
	known    remembered // *knownManifest by namespace and digest: those that are of use
	outlines remembered // outline by the same: of all that were looked at
}

// NewContentImages returns an Images over a content store. named lists the images; configured returns the registries,
// with their ports, that the operator has configured on a host. Both may be nil. Large documents are decoded in the memory of a
// budget; nil for no bound.
func NewContentImages(store Content, named ImageLister, configured func(hostname string) []string, m *memory.Budget) *ContentImages {
	return &ContentImages{store: store, named: named, configured: configured, memory: m}
}

// Find implements Images. With a manifest in the query only that one is looked at; otherwise
// all manifests that have the layer must have come from one repository.
func (c *ContentImages) Find(ctx context.Context, q Query) (layers.Image, int, error) {
	ctx, err := forward(ctx)
	if err != nil {
		return layers.Image{}, 0, err
	}
	if q.Manifest != "" {
		if img, i, err := c.inManifest(ctx, q.Manifest, q); err == nil {
			return img, i, nil
		}
		// The label may be the image author's own; look further.
	}
	type found struct {
		img   layers.Image
		index int
	}
	var all []found
	var last error
	err = c.store.Walk(ctx, func(info content.Info) error {
		img, i, err := c.inManifest(ctx, info.Digest, q)
		if err == nil {
			all = append(all, found{img, i})
		} else if last == nil {
			last = err
		}
		return nil
	}, fmt.Sprintf("labels.%q", configRefLabel))
	if err != nil {
		return layers.Image{}, 0, fmt.Errorf("walk content store: %w", err)
	}
	if len(all) == 0 {
		return layers.Image{}, 0, layers.NotLazy("no manifest in containerd's content store has it (%v)", last)
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.img.Target.Digest, b.img.Target.Digest) })
	for _, f := range all[1:] {
		if f.img.Repo != all[0].img.Repo || f.img.Layers[f.index].Descriptor.Digest != all[0].img.Layers[all[0].index].Descriptor.Digest {
			return layers.Image{}, 0, layers.NotLazy("it may come from %s or %s, and no label says which", all[0].img.Repo, f.img.Repo)
		}
	}
	return all[0].img, all[0].index, nil
}

// forward makes the namespace that a request came with the one of the requests that we make.
func forward(ctx context.Context) (context.Context, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return ctx, err
	}
	return namespaces.WithNamespace(ctx, ns), nil
}

// inManifest returns the image of a manifest if it has the layer.
func (c *ContentImages) inManifest(ctx context.Context, manifest digest.Digest, q Query) (layers.Image, int, error) {
	m, err := c.load(ctx, manifest, true)
	if err != nil {
		return layers.Image{}, 0, err
	}
	i := slices.Index(m.chainIDs, q.ChainID)
	if i < 0 {
		return layers.Image{}, 0, fmt.Errorf("manifest %s has no layer %s", manifest, q.ChainID)
	}
	img, err := c.image(ctx, manifest, m, q.Ref)
	return img, i, err
}

// Manifest implements Images.
func (c *ContentImages) Manifest(ctx context.Context, manifest digest.Digest, ref string) (layers.Image, error) {
	ctx, err := forward(ctx)
	if err != nil {
		return layers.Image{}, err
	}
	m, err := c.load(ctx, manifest, true)
	if err != nil { // the configuration may be on its way
		if m, err = c.load(ctx, manifest, false); err != nil {
			return layers.Image{}, err
		}
	}
	return c.image(ctx, manifest, m, ref)
}

// Known implements Images.
func (c *ContentImages) Known(ctx context.Context) (all []layers.Image, err error) {
	whole := func(ctx context.Context, d digest.Digest) (*knownManifest, error) { return c.load(ctx, d, true) }
	err = c.each(ctx, whole, func(_ *knownManifest, images []layers.Image) { all = append(all, images...) })
	return all, err
}

// Claims implements Images.
func (c *ContentImages) Claims(ctx context.Context, chainIDs map[digest.Digest]bool) (map[digest.Digest][]layers.Source, error) {
	claims := map[digest.Digest][]layers.Source{}
	claiming := func(ctx context.Context, d digest.Digest) (*knownManifest, error) {
		return c.claiming(ctx, d, chainIDs)
	}
	err := c.each(ctx, claiming, func(m *knownManifest, images []layers.Image) {
		for _, img := range images {
			for i, id := range m.chainIDs {
				if chainIDs[id] {
					claims[id] = append(claims[id], img.Layers[i])
				}
			}
		}
	})
	return claims, err
}

// each calls use for those manifests of a namespace that read returns, and what each is in all of the repositories that it came from;
// one that came from none has an empty repository.
func (c *ContentImages) each(ctx context.Context, read func(context.Context, digest.Digest) (*knownManifest, error),
	use func(m *knownManifest, images []layers.Image)) error {
	ctx, err := forward(ctx)
	if err != nil {
		return err
	}
	names := sync.OnceValues(func() (map[registry.Repository][]namedImage, error) { return c.names(ctx) })
	err = c.store.Walk(ctx, func(info content.Info) error {
		m, err := read(ctx, info.Digest)
		if ctx.Err() != nil {
			return context.Cause(ctx) // it may be one
		}
		if err != nil || m == nil {
			return nil // no image, or not all of one, or not one that is wanted
		}
		names, err := names()
		if err != nil {
			return err
		}
		var all []layers.Image
		for _, bare := range repositories(info.Labels) {
			for _, repo := range c.withPorts(bare, hostsOf(names[bare])...) {
				ref := ""
				if of := names[bare]; len(of) == 1 && of[0].repo == repo {
					ref = of[0].ref
				}
				all = append(all, imageIn(ctx, repo, ref, info, m))
			}
		}
		if len(all) == 0 { // it was loaded, or made here
			all = append(all, imageIn(ctx, registry.Repository{}, info.Digest.String(), info, m))
		}
		use(m, all)
		return nil
	}, fmt.Sprintf("labels.%q", configRefLabel))
	if err != nil {
		return fmt.Errorf("walk content store: %w", err)
	}
	return nil
}

// chainIDsOf returns the chainIDs of an image's layers, whose diffIDs are known.
func chainIDsOf(img *layers.Image) []digest.Digest {
	var all []digest.Digest
	for i := range img.Layers {
		all = append(all, img.Layers[i].DiffID)
	}
	return identity.ChainIDs(all)
}

func (c *ContentImages) image(ctx context.Context, manifest digest.Digest, m *knownManifest, ref string) (layers.Image, error) {
	info, err := c.store.Info(ctx, manifest)
	if err != nil {
		return layers.Image{}, err
	}
	ref = clientRef(ref, m.layers)
	repo, err := c.chooseRepository(info.Labels, ref)
	if err != nil {
		return layers.Image{}, err
	}
	return imageIn(ctx, repo, ref, info, m), nil
}

// A namedImage is how a namespace names an image, and the repository, with its port, of that name.
type namedImage struct {
	ref  string
	repo registry.Repository
}

// names returns the images of a namespace by their repositories without ports, which is how labels have them.
func (c *ContentImages) names(ctx context.Context) (map[registry.Repository][]namedImage, error) {
	if c.named == nil {
		return nil, nil
	}
	all, err := c.named.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	names := map[registry.Repository][]namedImage{}
	for i := range all {
		if r, err := registry.ParseRepository(all[i].Name); err == nil { // else nothing that was pulled
			bare := registry.Repository{Host: r.Hostname(), Path: r.Path}
			names[bare] = append(names[bare], namedImage{all[i].Name, r})
		}
	}
	return names, nil
}

func hostsOf(names []namedImage) (hosts []string) {
	for _, n := range names {
		hosts = append(hosts, n.repo.Host)
	}
	return hosts
}

// imageIn is the image of a manifest in a repository.
func imageIn(ctx context.Context, repo registry.Repository, ref string, info content.Info, m *knownManifest) layers.Image {
	target := ocispec.Descriptor{MediaType: m.mediaType, Digest: info.Digest, Size: info.Size}
	img := layers.Image{Ref: ref, Target: target, Repo: repo}
	name := cmp.Or(ref, repo.String()+"@"+info.Digest.String())
	namespace, _ := namespaces.Namespace(ctx) // load has it
	for i, d := range m.layers {
		s := layers.Source{Image: name, Repo: repo, Descriptor: d, Namespace: namespace}
		if m.diffIDs != nil {
			s.DiffID = m.diffIDs[i]
		}
		img.Layers = append(img.Layers, s)
	}
	return img
}

// chooseRepository decides where an image's blobs are asked for: only where containerd itself
// fetched the manifest. containerd records that place without the registry's port, so a
// reference, if it is of the same host and path, supplies the port; otherwise the port is that of
// the one registry on this host which the operator configured, or the default.
func (c *ContentImages) chooseRepository(labels map[string]string, ref string) (registry.Repository, error) {
	all := repositories(labels)
	if ref != "" {
		if want, err := registry.ParseRepository(ref); err == nil &&
			slices.Contains(all, registry.Repository{Host: want.Hostname(), Path: want.Path}) {
			return want, nil
		}
	}
	switch len(all) {
	case 0:
		return registry.Repository{}, layers.NotLazy("containerd did not record where the manifest came from")
	case 1:
		return c.withConfiguredPort(all[0])
	}
	return registry.Repository{}, layers.NotLazy("it may come from %s or %s, and no label says which", all[0], all[1])
}

// repositories are those that containerd fetched a blob from, without their ports, sorted.
func repositories(labels map[string]string) (all []registry.Repository) {
	for k, v := range labels {
		host, ok := strings.CutPrefix(k, sourceLabelPrefix)
		if !ok {
			continue
		}
		for path := range strings.SplitSeq(v, ",") {
			if path != "" {
				all = append(all, registry.Repository{Host: host, Path: path})
			}
		}
	}
	slices.SortFunc(all, func(a, b registry.Repository) int { return cmp.Compare(a.String(), b.String()) })
	return all
}

func (c *ContentImages) withConfiguredPort(r registry.Repository) (registry.Repository, error) {
	all := c.withPorts(r)
	if len(all) > 1 {
		return r, layers.NotLazy("it may come from %s or %s, and no label says which", all[0].Host, all[1].Host)
	}
	return all[0], nil
}

// withPorts returns a repository on each registry of its host that the operator has configured or that is named, or as
// it is.
func (c *ContentImages) withPorts(r registry.Repository, named ...string) (all []registry.Repository) {
	hosts := slices.Clone(named)
	if c.configured != nil {
		hosts = append(hosts, c.configured(r.Host)...)
	}
	slices.Sort(hosts)
	for _, host := range slices.Compact(hosts) {
		all = append(all, registry.Repository{Host: host, Path: r.Path})
	}
	if len(all) == 0 {
		return []registry.Repository{r}
	}
	return all
}

// clientRef returns the reference that a label holds, unless it may be the image author's own
// doing: annotations of the layers become labels where a client does not set them itself.
func clientRef(ref string, layers []ocispec.Descriptor) string {
	for _, l := range layers {
		for _, key := range []string{snapshotters.TargetRefLabel, stargzRefLabel} {
			if v, ok := l.Annotations[key]; ok && v == ref {
				return ""
			}
		}
	}
	return ref
}
