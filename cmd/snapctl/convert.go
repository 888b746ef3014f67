package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	lib "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2"
	orascontent "oras.land/oras-go/v2/content"

	"github.com/remora-storage/remora/fs/format/estargz"
)

type convertOptions struct {
	plainHTTP  bool
	user       string
	prioritize string
}

// convertedImage is what `snapctl convert --json` prints. Sizes are packed bytes.
type convertedImage struct {
	Source      string           `json:"source"`
	Destination string           `json:"destination"`
	Digest      digest.Digest    `json:"digest"`
	Seconds     float64          `json:"seconds"`
	Layers      []convertedLayer `json:"layers"`
}

type convertedLayer struct {
	From    digest.Digest `json:"from"`
	To      digest.Digest `json:"to"`
	Bytes   int64         `json:"bytes"`
	Before  int64         `json:"bytes_before"`
	Seconds float64       `json:"seconds"`
}

const (
	gzipLevel = 6
	// chunkSize is the unit of reading large files: a page fault costs a chunk.
	chunkSize = 1 << 20
	// slices of a layer that are compressed at once. Fixed, so that every machine makes the
	// same bytes.
	layerSlices = 4
)

func (a *app) convertCommand() *cobra.Command {
	var o convertOptions
	c := &cobra.Command{
		Use:   "convert [flags] SRC DST",
		Short: "Convert an image to eStargz, so that it can be pulled lazily",
		Long: `convert copies an image and makes every layer eStargz: the same files, with an index at the
end. Nodes without Remora pull the result as an ordinary image.

SRC and DST are references (registry.example.com/app:1) or OCI layouts on disk (oci:DIR:TAG).
With --prioritize the files listed, one path a line, are put first in their layers, in that
order, and are prefetched by every pull: list what the program opens when it starts.`,
		Example: `  snapctl convert docker.io/library/redis:7 registry.example.com/redis:7-lazy
  snapctl convert oci:build:latest localhost:5000/app:lazy --prioritize startup-files.txt`,
		Args: exactly(2, "a source and a destination"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.convert(cmd.Context(), args[0], args[1], o) },
	}
	c.Flags().BoolVar(&o.plainHTTP, "plain-http", false, "reach registries by plain HTTP")
	c.Flags().StringVar(&o.user, "user", "", "`user[:password]` for the registries; without a password $SNAPCTL_PASSWORD is used")
	c.Flags().StringVar(&o.prioritize, "prioritize", "", "`file` with the paths to prefetch, one a line, in order")
	return c
}

func (a *app) convert(ctx context.Context, from, to string, o convertOptions) error {
	began := time.Now()
	first, err := readList(o.prioritize)
	if err != nil {
		return err
	}
	src, srcRef, err := a.openTarget(ctx, from, o, false)
	if err != nil {
		return err
	}
	dst, dstRef, err := a.openTarget(ctx, to, o, true)
	if err != nil {
		return err
	}
	desc, err := src.Resolve(ctx, srcRef)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	work, err := os.MkdirTemp("", "snapctl-convert-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	c := &converter{app: a, src: src, dst: dst, first: first, work: work, found: make([]atomic.Bool, len(first))}
	out, err := c.any(ctx, desc)
	if err != nil {
		return fmt.Errorf("convert %s: %w", from, err)
	}
	if err := dst.Tag(ctx, out, dstRef); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	for i := range first {
		if !c.found[i].Load() {
			a.note("warning: %s is in no layer of %s", first[i], from)
		}
	}
	result := &convertedImage{Source: from, Destination: to, Digest: out.Digest, Seconds: time.Since(began).Seconds(), Layers: c.layers}
	return a.print(result, result.human)
}

func readList(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--prioritize: %w", err)
	}
	defer f.Close()
	var list []string
	in := bufio.NewScanner(f)
	for in.Scan() {
		if line := strings.TrimSpace(in.Text()); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	return list, in.Err()
}

// converter converts one image.
type converter struct {
	*app
	src, dst oras.Target
	first    []string // paths to prefetch
	work     string

	found  []atomic.Bool // which of first are in some layer
	layers []convertedLayer
}

// any converts a manifest, or every manifest of an index.
func (c *converter) any(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	switch desc.MediaType {
	case ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json":
		return c.manifest(ctx, desc)
	case ocispec.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json":
	default:
		return desc, fmt.Errorf("%s is a %s, not an image", desc.Digest, desc.MediaType)
	}
	var index ocispec.Index
	if err := c.read(ctx, desc, &index); err != nil {
		return desc, err
	}
	var manifests []ocispec.Descriptor
	for _, m := range index.Manifests {
		if m.Platform != nil && m.Platform.OS == "unknown" {
			continue // attestations speak of digests that change here
		}
		out, err := c.any(ctx, m)
		if err != nil {
			return desc, err
		}
		out.Platform = m.Platform
		manifests = append(manifests, out)
	}
	index.Manifests, index.MediaType, index.SchemaVersion = manifests, ocispec.MediaTypeImageIndex, 2
	return c.write(ctx, ocispec.MediaTypeImageIndex, index)
}

func (c *converter) manifest(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := c.read(ctx, desc, &m); err != nil {
		return desc, err
	}
	out := make([]ocispec.Descriptor, len(m.Layers))
	diffIDs := make([]digest.Digest, len(m.Layers))
	seconds := make([]float64, len(m.Layers))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(runtime.NumCPU(), 2))
	for i, l := range m.Layers {
		group.Go(func() (err error) {
			began := time.Now()
			if out[i], diffIDs[i], err = c.layer(gctx, l); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			seconds[i] = time.Since(began).Seconds()
			c.note("layer %d of %d: %s, %s, becomes %s, %s", i+1, len(m.Layers), short(l.Digest), size(l.Size), short(out[i].Digest), size(out[i].Size))
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return desc, err
	}
	for i, l := range m.Layers {
		c.layers = append(c.layers, convertedLayer{From: l.Digest, To: out[i].Digest, Bytes: out[i].Size, Before: l.Size, Seconds: seconds[i]})
	}
	config, err := c.config(ctx, m.Config, diffIDs)
	if err != nil {
		return desc, err
	}
	return c.write(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: out, Annotations: m.Annotations,
	})
}

// config writes the image's configuration with other diffIDs and everything else as it was.
func (c *converter) config(ctx context.Context, desc ocispec.Descriptor, diffIDs []digest.Digest) (ocispec.Descriptor, error) {
	fields := map[string]json.RawMessage{}
	if err := c.read(ctx, desc, &fields); err != nil {
		return desc, err
	}
	rootfs, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return desc, err
	}
	fields["rootfs"] = rootfs
	return c.write(ctx, ocispec.MediaTypeImageConfig, fields)
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
	return desc, c.push(ctx, desc, bytes.NewReader(p))
}

// push stores a blob unless the destination has it.
func (c *converter) push(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	if has, err := c.dst.Exists(ctx, desc); err != nil || has {
		return err
	}
	if err := c.dst.Push(ctx, desc, r); err != nil {
		return fmt.Errorf("store %s: %w", desc.Digest, err)
	}
	return nil
}

// layer converts one layer and stores it.
func (c *converter) layer(ctx context.Context, desc ocispec.Descriptor) (out ocispec.Descriptor, diffID digest.Digest, err error) {
	packed, err := c.download(ctx, desc)
	if err != nil {
		return out, "", err
	}
	defer packed.Close()
	var missed []string
	opts := []lib.Option{
		lib.WithContext(ctx), lib.WithCompressionLevel(gzipLevel), lib.WithChunkSize(chunkSize), lib.WithParallelism(layerSlices),
		lib.WithAllowPrioritizeNotFound(&missed),
	}
	if len(c.first) > 0 {
		opts = append(opts, lib.WithPrioritizedFiles(c.first))
	}
	blob, err := lib.Build(io.NewSectionReader(packed, 0, desc.Size), opts...)
	if err != nil {
		return out, "", err
	}
	defer blob.Close()
	for i, p := range c.first {
		if !slices.Contains(missed, p) {
			c.found[i].Store(true)
		}
	}
	made, err := os.CreateTemp(c.work, "layer-")
	if err != nil {
		return out, "", err
	}
	defer made.Close()
	sum := digest.Canonical.Digester()
	n, err := io.Copy(io.MultiWriter(made, sum.Hash()), blob)
	if err != nil {
		return out, "", err
	}
	plain, err := blob.UncompressedSize()
	if err != nil {
		return out, "", err
	}
	tocOff, _, err := lib.OpenFooter(io.NewSectionReader(made, 0, n))
	if err != nil {
		return out, "", err
	}
	out = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: sum.Digest(), Size: n,
		Annotations: map[string]string{
			estargz.TOCDigest:                   blob.TOCDigest().String(),
			estargz.TOCOffset:                   strconv.FormatInt(tocOff, 10),
			lib.StoreUncompressedSizeAnnotation: strconv.FormatInt(plain, 10),
		},
	}
	return out, blob.DiffID(), c.push(ctx, out, io.NewSectionReader(made, 0, n))
}

// download brings a layer to a file and checks it.
func (c *converter) download(ctx context.Context, desc ocispec.Descriptor) (*os.File, error) {
	if len(desc.URLs) > 0 {
		return nil, errors.New("foreign layers, which lie outside the registry, are not converted")
	}
	r, err := c.src.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := os.CreateTemp(c.work, "source-")
	if err != nil {
		return nil, err
	}
	v := orascontent.NewVerifyReader(r, desc)
	if _, err = io.Copy(f, v); err == nil {
		err = v.Verify()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (r *convertedImage) human(w io.Writer) {
	var before, after int64
	for _, l := range r.Layers {
		before += l.Before
		after += l.Bytes
	}
	fmt.Fprintf(w, "%s is %s@%s: %d layers, %s before, %s now, %.2f s\n", r.Source, r.Destination, r.Digest,
		len(r.Layers), size(before), size(after), r.Seconds)
}
