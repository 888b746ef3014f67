package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	orascontent "oras.land/oras-go/v2/content"

	"github.com/remora-storage/remora/fs/convert"
	"github.com/remora-storage/remora/fs/profile"
)

// converter converts one image.
type converter struct {
	*app
	o           convertOptions
	from, to    string
	src, dst    target
	layer       convert.Options
	platforms   []ocispec.Platform // empty for all
	annotations map[string]string
	profile     *profile.Profile
	wanted      []string // paths that a person listed
	work        *work

	uploaded  atomic.Int64
	mu        sync.Mutex // guards the fields below
	done      []convertedLayer
	missed    map[string]int // how many layers do not have a path
	converted int            // layers that were looked through for paths
	manifests []ocispec.Descriptor
}

// any converts a manifest, or the manifests of an index.
func (c *converter) any(ctx context.Context, desc ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	if images.IsManifestType(desc.MediaType) {
		return c.manifest(ctx, desc, platform)
	}
	if !images.IsIndexType(desc.MediaType) {
		return desc, fmt.Errorf("%s is a %s, not an image", desc.Digest, desc.MediaType)
	}
	var index ocispec.Index
	if err := c.read(ctx, desc, &index); err != nil {
		return desc, err
	}
	var manifests []ocispec.Descriptor
	var names []string
	for _, m := range index.Manifests {
		if m.Platform != nil && m.Platform.OS == "unknown" {
			continue // attestations speak of digests that change here
		}
		names = append(names, platformName(m.Platform))
		if !c.wants(m.Platform) {
			continue
		}
		out, err := c.any(ctx, m, platformName(m.Platform))
		if err != nil {
			return desc, err
		}
		out.Platform = m.Platform
		manifests = append(manifests, out)
	}
	if len(manifests) == 0 {
		return desc, fmt.Errorf("no manifest for %v: the image has %v", c.o.platforms, names)
	}
	if len(c.platforms) == 1 && len(manifests) == 1 {
		return manifests[0], nil
	}
	index.Manifests, index.SchemaVersion = manifests, 2
	index.MediaType = c.mediaType(desc.MediaType, ocispec.MediaTypeImageIndex)
	index.Annotations = c.annotate(index.Annotations)
	return c.write(ctx, index.MediaType, index)
}

func (c *converter) wants(p *ocispec.Platform) bool {
	return len(c.platforms) == 0 || p != nil &&
		slices.ContainsFunc(c.platforms, func(want ocispec.Platform) bool { return platforms.OnlyStrict(want).Match(*p) })
}

// mediaType returns what a document becomes: OCI's type, or what it was.
func (c *converter) mediaType(was, oci string) string {
	if c.o.oci || c.layer.Format == convert.ZstdChunked || was == "" {
		return oci
	}
	return was
}

func (c *converter) annotate(annotations map[string]string) map[string]string {
	if len(c.annotations) == 0 {
		return annotations
	}
	all := maps.Clone(annotations)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, c.annotations)
	return all
}

func (c *converter) manifest(ctx context.Context, desc ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := c.read(ctx, desc, &m); err != nil {
		return desc, err
	}
	fields := map[string]json.RawMessage{} // of the configuration
	if err := c.read(ctx, m.Config, &fields); err != nil {
		return desc, err
	}
	var rootfs ocispec.RootFS
	if err := json.Unmarshal(fields["rootfs"], &rootfs); err != nil || len(rootfs.DiffIDs) != len(m.Layers) {
		return desc, fmt.Errorf("configuration %s has %d diffIDs for %d layers (%v)", m.Config.Digest, len(rootfs.DiffIDs), len(m.Layers), err)
	}
	done := make([]convertedLayer, len(m.Layers))
	layers := make([]ocispec.Descriptor, len(m.Layers))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(c.o.jobs, 2)) // one may download while another is packed
	for i, l := range m.Layers {
		group.Go(func() error {
			began := time.Now()
			what := fmt.Sprintf("layer %d of %d", i+1, len(m.Layers))
			if platform != "" {
				what = platform + " " + what
			}
			r, err := c.oneLayer(gctx, l, rootfs.DiffIDs[i], what)
			if err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			layers[i], rootfs.DiffIDs[i] = r.Descriptor, r.DiffID
			layers[i].MediaType = c.layerType(l.MediaType, r)
			done[i] = convertedLayer{Platform: platform, From: l.Digest, To: r.Descriptor.Digest, Before: l.Size, Bytes: r.Descriptor.Size,
				Plain: r.Plain, How: r.How, Seconds: time.Since(began).Seconds()}
			if !c.o.dryRun {
				c.note("%s: %s, %s, %s %s, %s, after %.1f s", what, short(l.Digest), size(l.Size), r.How, short(r.Descriptor.Digest),
					size(r.Descriptor.Size), done[i].Seconds)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return desc, err
	}
	c.done = append(c.done, done...)
	if c.o.dryRun {
		return desc, nil
	}
	var err error
	if fields["rootfs"], err = json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: rootfs.DiffIDs}); err != nil {
		return desc, err
	}
	config, err := c.write(ctx, c.mediaType(m.Config.MediaType, ocispec.MediaTypeImageConfig), fields)
	if err != nil {
		return desc, err
	}
	m.MediaType = c.mediaType(desc.MediaType, ocispec.MediaTypeImageManifest)
	out, err := c.write(ctx, m.MediaType, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: m.MediaType, Config: config, Layers: layers,
		Annotations: c.annotate(m.Annotations),
	})
	c.manifests = append(c.manifests, out)
	return out, err
}

// layerType returns the media type of a layer of the result.
func (c *converter) layerType(was string, r *layerResult) string {
	const dockerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	docker := was == dockerGzip || was == images.MediaTypeDockerSchema2Layer
	if r.Descriptor.MediaType == ocispec.MediaTypeImageLayerGzip && docker && c.mediaType(was, "") != "" {
		return dockerGzip
	}
	if r.Descriptor.MediaType == dockerGzip && c.mediaType(was, "") == "" {
		return ocispec.MediaTypeImageLayerGzip
	}
	return r.Descriptor.MediaType
}

// layerResult is a layer of the result, which the destination has.
type layerResult struct {
	Descriptor ocispec.Descriptor
	DiffID     digest.Digest
	Plain      int64
	How        string
	Missed     []string
}

// oneLayer converts one layer and stores it, or finds that this was done before.
func (c *converter) oneLayer(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, what string) (*layerResult, error) {
	if c.o.reuse && convert.Ready(desc, c.layer.Format) {
		r := &layerResult{Descriptor: desc, DiffID: diffID, How: "reused"}
		r.Descriptor.Data, r.Descriptor.URLs = nil, nil
		if c.o.dryRun {
			return r, nil
		}
		return r, c.copyBlob(ctx, desc)
	}
	if len(desc.URLs) > 0 {
		return nil, errors.New("foreign layers, which lie outside the registry, are not converted")
	}
	key := c.key(desc.Digest)
	if r := c.work.known(key); r != nil {
		there, err := c.there(ctx, r.Descriptor, c.work.places(key))
		if err != nil {
			return nil, err
		}
		if there {
			r.How = "known"
			c.noteMissed(r.Missed)
			return r, nil
		}
	}
	if c.o.dryRun {
		return &layerResult{Descriptor: ocispec.Descriptor{}, How: "converted"}, nil
	}
	packed, err := c.download(ctx, desc, what)
	if err != nil {
		return nil, err
	}
	defer packed.Close()
	o := c.layer
	o.Progress = c.packing(what)
	made, err := convert.Layer(ctx, packed, desc.Size, o)
	if err != nil {
		return nil, err
	}
	defer made.File.Close()
	r := &layerResult{Descriptor: made.Descriptor, DiffID: made.DiffID, Plain: made.Plain, How: "converted", Missed: made.Missed}
	c.noteMissed(r.Missed)
	if err := c.push(ctx, r.Descriptor, io.NewSectionReader(made.File, 0, r.Descriptor.Size)); err != nil {
		return nil, err
	}
	c.work.remember(key, r, c.dst.Place())
	return r, nil
}

// key identifies a layer and everything that decides what becomes of it.
func (c *converter) key(layer digest.Digest) string {
	enc, err := json.Marshal([]any{"3", layer, c.layer.Format, c.layer.For, c.layer.Level, c.layer.ChunkSize, c.layer.First})
	if err != nil {
		panic(err) // strings and numbers
	}
	return digest.FromBytes(enc).Encoded()
}

func (c *converter) noteMissed(missed []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.converted++
	if c.missed == nil {
		c.missed = map[string]int{}
	}
	for _, path := range missed {
		c.missed[path]++
	}
}

// unfound lists the paths that a person wanted first and that are in no layer.
func (c *converter) unfound() (all []string) {
	for _, path := range c.wanted {
		if c.converted > 0 && c.missed[path] == c.converted {
			all = append(all, path)
		}
	}
	return all
}

const maxDocument = 16 << 20 // bytes of a manifest, index or configuration

func (c *converter) read(ctx context.Context, desc ocispec.Descriptor, into any) error {
	if desc.Size > maxDocument {
		return fmt.Errorf("%s has %d bytes, more than %d", desc.Digest, desc.Size, maxDocument)
	}
	p, err := orascontent.FetchAll(ctx, c.src, desc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(p, into); err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	return nil
}

func (c *converter) write(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
	if c.o.dryRun {
		return desc, nil
	}
	return desc, c.push(ctx, desc, bytes.NewReader(p))
}

// push stores a blob unless the destination has it.
func (c *converter) push(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	there, err := c.there(ctx, desc, nil)
	if err != nil || there {
		return err
	}
	if err := c.dst.Push(ctx, desc, r); err != nil {
		return fmt.Errorf("store %s: %w", desc.Digest, err)
	}
	c.uploaded.Add(desc.Size)
	return nil
}

// there reports whether the destination has a blob, or could take it over from another place of the
// same registry.
func (c *converter) there(ctx context.Context, desc ocispec.Descriptor, places []string) (bool, error) {
	has, err := c.dst.Exists(ctx, desc)
	if err != nil || has {
		return has, err
	}
	if m, ok := c.dst.(mounter); ok {
		return m.MountFrom(ctx, desc, append(places, c.src.Place()))
	}
	return false, nil
}

// copyBlob copies a blob as it is.
func (c *converter) copyBlob(ctx context.Context, desc ocispec.Descriptor) error {
	there, err := c.there(ctx, desc, nil)
	if err != nil || there {
		return err
	}
	r, err := c.src.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := c.dst.Push(ctx, desc, r); err != nil {
		return fmt.Errorf("store %s: %w", desc.Digest, err)
	}
	c.uploaded.Add(desc.Size)
	return nil
}

const progressEvery = 2 * time.Second

// download brings a layer to a file and checks it.
func (c *converter) download(ctx context.Context, desc ocispec.Descriptor, what string) (*os.File, error) {
	r, err := c.src.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := c.work.file("source-")
	if err != nil {
		return nil, err
	}
	last, n := time.Now(), int64(0)
	v := orascontent.NewVerifyReader(r, desc)
	_, err = io.Copy(f, readerFunc(func(p []byte) (int, error) {
		k, err := v.Read(p)
		if n += int64(k); time.Since(last) > progressEvery {
			last = time.Now()
			c.note("%s: read %s of %s", what, size(n), size(desc.Size))
		}
		return k, err
	}))
	if err == nil {
		err = v.Verify()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// packing returns what tells a person how far a layer is, now and then.
func (c *converter) packing(what string) func(int) {
	var mu sync.Mutex // guards both
	var done int64
	last := time.Now()
	return func(n int) {
		mu.Lock()
		defer mu.Unlock()
		if done += int64(n); time.Since(last) > progressEvery {
			last = time.Now()
			c.note("%s: packed %s so far", what, size(done))
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
