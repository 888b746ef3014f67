package snapshotter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/golang/groupcache/lru"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// documentsUser has the memory in which manifests and configurations are decoded.
const documentsUser fair.User = "documents of containerd's content store"

type knownManifest struct {
	mediaType string
	layers    []ocispec.Descriptor
	diffIDs   []digest.Digest // nil until the configuration is there
	chainIDs  []digest.Digest
	config    ocispec.Descriptor
}

// An outline is what is known of a manifest that may be of no use: each start looks at all manifests of its namespace.
type outline struct {
	chains []uint64 // short forms of its chainIDs; none if it is no image
	// config is the configuration that was not in the store yet; "" if it was, or the manifest is no image.
	config digest.Digest
}

func (o *outline) size() int { return 160 + 8*len(o.chains) + len(o.config) }

// mayClaim reports whether a manifest may have one of some chainIDs.
func (o *outline) mayClaim(chainIDs map[digest.Digest]bool) bool {
	for id := range chainIDs {
		if slices.Contains(o.chains, shortOf(id)) {
			return true
		}
	}
	return false
}

// shortOf returns a short form of a digest, by which two of them may seem equal.
func shortOf(id digest.Digest) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, string(id)) // it cannot fail
	return h.Sum64()
}

// remembered is a bounded memory: what was of no use for the longest time goes first. The zero value is empty.
type remembered struct {
	all   lru.Cache
	bytes int
}

func (r *remembered) get(key string) any {
	v, _ := r.all.Get(key)
	return v
}

func (r *remembered) add(key string, v interface{ size() int }, most int) {
	r.all.OnEvicted = func(_ lru.Key, v any) { r.bytes -= v.(interface{ size() int }).size() }
	r.all.Remove(key)
	r.all.Add(key, v)
	for r.bytes += v.size(); r.bytes > most && r.all.Len() > 1; {
		r.all.RemoveOldest()
	}
}

var errUnreadable = errors.New("no image that is read here")

// missingConfig says that a manifest's configuration is not in the store.
type missingConfig struct {
	digest digest.Digest
	error
}

func (m *missingConfig) Unwrap() error { return m.error }

func keyOfManifest(ctx context.Context, manifest digest.Digest) (string, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	return ns + "/" + manifest.String(), err
}

// load returns a manifest that is of use, with its configuration if that is wanted, and remembers it.
func (c *ContentImages) load(ctx context.Context, manifest digest.Digest, withConfig bool) (*knownManifest, error) {
	key, err := keyOfManifest(ctx, manifest)
	if err != nil {
		return nil, err
	}
	if m := c.remembers(key); m != nil && (m.diffIDs != nil || !withConfig) {
		return m, nil
	}
	m, err := c.read(ctx, manifest, withConfig)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known.add(key, m, maxRemembered)
	return m, nil
}

func (c *ContentImages) remembers(key string) *knownManifest {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, _ := c.known.get(key).(*knownManifest)
	return m
}

// claiming returns a manifest if it has one of some chainIDs, and nil otherwise. What has none is read once, and what is no image too.
func (c *ContentImages) claiming(ctx context.Context, manifest digest.Digest, chainIDs map[digest.Digest]bool) (*knownManifest, error) {
	key, err := keyOfManifest(ctx, manifest)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	known, _ := c.outlines.get(key).(*outline)
	c.mu.Unlock()
	if known != nil && known.config != "" {
		if _, err := c.store.Info(ctx, known.config); errdefs.IsNotFound(err) {
			return nil, nil
		}
		known = nil
	}
	if known != nil && !known.mayClaim(chainIDs) {
		return nil, nil
	}
	m := c.remembers(key)
	if m == nil || m.diffIDs == nil {
		if m, err = c.read(ctx, manifest, true); err != nil {
			c.noteFailure(key, err)
			return nil, err
		}
	}
	o := &outline{}
	claims := false
	for _, id := range m.chainIDs {
		o.chains = append(o.chains, shortOf(id))
		claims = claims || chainIDs[id]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outlines.add(key, o, maxOutlines)
	if !claims {
		return nil, nil
	}
	c.known.add(key, m, maxRemembered)
	return m, nil
}

// noteFailure remembers why a manifest was not read, if that stays so.
func (c *ContentImages) noteFailure(key string, err error) {
	o := &outline{}
	var missing *missingConfig
	switch {
	case errors.As(err, &missing):
		o.config = missing.digest
	case !errors.Is(err, errUnreadable):
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outlines.add(key, o, maxOutlines)
}

// read reads a manifest, and its configuration if that is wanted.
func (c *ContentImages) read(ctx context.Context, manifest digest.Digest, withConfig bool) (*knownManifest, error) {
	var doc ocispec.Manifest
	if err := c.readJSON(ctx, ocispec.Descriptor{Digest: manifest}, maxManifest, &doc); err != nil {
		return nil, err
	}
	m := &knownManifest{mediaType: cmp.Or(doc.MediaType, ocispec.MediaTypeImageManifest), layers: doc.Layers, config: doc.Config}
	if doc.MediaType != "" && !images.IsManifestType(doc.MediaType) || len(doc.Layers) == 0 {
		return nil, fmt.Errorf("%s is not an image manifest with layers: %w", manifest, errUnreadable)
	}
	if len(doc.Layers) > maxLayers {
		return nil, fmt.Errorf("manifest %s has %d layers (limit %d): %w", manifest, len(doc.Layers), maxLayers, errUnreadable)
	}
	for i := range m.layers {
		m.layers[i].Data = nil // what a manifest embeds is not read, so it need not be remembered
	}
	if !withConfig {
		return m, nil
	}
	if err := doc.Config.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("configuration of manifest %s: %w: %w", manifest, errUnreadable, err)
	}
	var config ocispec.Image
	if err := c.readJSON(ctx, doc.Config, layers.MaxConfig, &config); errdefs.IsNotFound(err) {
		return nil, &missingConfig{doc.Config.Digest, err}
	} else if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(doc.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers and %d diffIDs: %w",
			manifest, len(doc.Layers), len(config.RootFS.DiffIDs), errUnreadable)
	}
	m.diffIDs = config.RootFS.DiffIDs
	m.chainIDs = identity.ChainIDs(slices.Clone(m.diffIDs))
	return m, nil
}

// size is about what a manifest takes in memory, in bytes.
func (m *knownManifest) size() (n int) {
	const layer, id = 256, 96 // a descriptor with its digest; a diffID and a chainID each
	n = len(m.diffIDs) * 2 * id
	for _, d := range m.layers {
		n += layer
		for k, v := range d.Annotations {
			n += len(k) + len(v) + id
		}
		for _, u := range d.URLs {
			n += len(u)
		}
	}
	return n
}

// readJSON reads a document. Whose it is does not matter for its share of memory: whoever asks would wait behind what its author does
// besides.
func (c *ContentImages) readJSON(ctx context.Context, desc ocispec.Descriptor, limit int64, into any) error {
	info, err := c.store.Info(ctx, desc.Digest)
	if err != nil {
		return fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	if info.Size > limit {
		return fmt.Errorf("read %s: %w: %d bytes, more than %d", desc.Digest, errUnreadable, info.Size, limit)
	}
	desc.Size = info.Size
	if info.Size > usualDocument {
		share, err := c.memory.Acquire(ctx, documentsUser, info.Size*decodedTimes)
		if err != nil {
			return fmt.Errorf("read %s: %w", desc.Digest, err)
		}
		defer share.Release()
	}
	p, err := content.ReadBlob(ctx, c.store, desc)
	if err != nil {
		return fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	if err := json.Unmarshal(p, into); err != nil {
		return fmt.Errorf("read %s: %w: %w", desc.Digest, errUnreadable, err)
	}
	return nil
}
