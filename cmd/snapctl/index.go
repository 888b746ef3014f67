package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/remora-storage/remora/cmd/internal/formats"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/remote/registry"
)

func (a *app) indexCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "index",
		Short: "Make images lazy without changing them",
		Long: `An index lets nodes read an ordinary image by parts: it says what is in each layer, and where in the
compressed layer decoding can begin. It is about one percent of the image, and lies beside it in the
registry as an artifact that refers to it. The image itself, its digest too, stays as it is.

remorad makes one whenever it imports an image, for this node's next pull of it, and publishes it with
[index] publish = true. These commands make and publish one without remorad or containerd, say after
a build. Nodes use published indexes of the registries and repositories in [index] trust.`,
	}
	c.AddCommand(a.indexCreate(), a.indexPush(), a.indexList(), a.indexShow(), a.indexRemove())
	return c
}

// createdIndex is what `snapctl index create --json` prints.
type createdIndex struct {
	shownIndex
	Seconds float64                  `json:"seconds"`
	Skipped map[digest.Digest]string `json:"skipped,omitempty"` // layers, and why
}

func (a *app) indexCreate() *cobra.Command {
	var o pullOptions
	var output string
	c := &cobra.Command{
		Use:   "create [flags] IMAGE",
		Short: "Make an image's index, on this machine",
		Long: `create reads every layer of an image in a registry once and keeps the image's index on this machine,
for "index push". Layers that have an index of their own (eStargz, zstd:chunked) need none.`,
		Args: exactly(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.remoteImage(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			data, created, err := a.createIndex(cmd.Context(), r)
			if err != nil {
				return fmt.Errorf("index %s: %w", r.ref, err)
			}
			if output != "" {
				if err := os.WriteFile(output, data, 0o644); err != nil {
					return err
				}
			}
			return a.print(created, func(w io.Writer) {
				created.human(w)
				for d, why := range created.Skipped {
					fmt.Fprintf(w, "%s  skipped: %s\n", short(d), why)
				}
			})
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "write the index to `FILE`, too")
	o.registryFlags(c)
	return c
}

func (a *app) indexPush() *cobra.Command {
	var o pullOptions
	c := &cobra.Command{
		Use:   "push [flags] IMAGE [FILE]",
		Short: "Publish an image's index beside it in its registry",
		Long: `push publishes the index that "index create" made, or the one in FILE; if there is none it is made
first. It takes the place of what was published before.`,
		Args: between(1, 2, "an image and perhaps a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r, err := a.remoteImage(ctx, args[0], o)
			if err != nil {
				return err
			}
			var data []byte
			if len(args) == 2 {
				data, err = os.ReadFile(args[1])
			} else {
				data, err = a.indexOf(ctx, r)
			}
			if err != nil {
				return err
			}
			if err := r.checkIndex(ctx, data); err != nil {
				return err
			}
			done, err := r.registry.PushArtifact(ctx, r.repo, r.manifest, index.Artifact, data)
			if err != nil {
				return fmt.Errorf("publish the index of %s: %w", r.ref, err)
			}
			result := struct {
				Image  string        `json:"image"`
				Digest digest.Digest `json:"digest"`
				Pushed digest.Digest `json:"pushed"`
				Tag    string        `json:"tag"`
				Bytes  int           `json:"bytes"`
			}{r.ref, r.manifest.Digest, done.Digest, done.Tag, len(data)}
			return a.print(result, func(w io.Writer) {
				fmt.Fprintf(w, "published the index of %s@%s, %s, as %s\n", r.ref, r.manifest.Digest, size(int64(len(data))), done.Tag)
			})
		},
	}
	o.registryFlags(c)
	return c
}

func (a *app) indexList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the indexes that were made on this machine",
		Args:  exactly(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			store, err := openIndexStore()
			if err != nil {
				return err
			}
			all, err := store.list()
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "IMAGE\tDIGEST\tSIZE\tCREATED")
				for _, n := range all {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", n.Image, short(n.Digest), size(n.Bytes), n.Created.Format(time.RFC3339))
				}
				t.Flush()
			})
		},
	}
}

func (a *app) indexShow() *cobra.Command {
	var o pullOptions
	var published bool
	c := &cobra.Command{
		Use:   "show [flags] IMAGE",
		Short: "Show what an image's index holds, and how large each part is",
		Args:  exactly(1, "an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r, err := a.remoteImage(ctx, args[0], o)
			if err != nil {
				return err
			}
			data, err := r.savedIndex()
			if published || errors.Is(err, os.ErrNotExist) {
				data, err = r.registry.Artifact(ctx, r.repo, r.manifest.Digest, index.Artifact, nil)
			}
			if errors.Is(err, registry.ErrNotFound) {
				return fmt.Errorf("no index of %s is published, nor was one made here; see \"snapctl index create\"", r.ref)
			}
			if err != nil {
				return err
			}
			shown, err := describeIndex(r.ref, r.manifest.Digest, data)
			if err != nil {
				return err
			}
			return a.print(shown, shown.human)
		},
	}
	c.Flags().BoolVar(&published, "published", false, "show the one in the registry even if this machine has made one")
	o.registryFlags(c)
	return c
}

func (a *app) indexRemove() *cobra.Command {
	return a.artifactRemove("Remove an image's index from this machine", "this machine", index.Artifact,
		func(_ context.Context, r *remoteImage) error {
			store, err := openIndexStore()
			if err != nil {
				return err
			}
			return store.remove(r.manifest.Digest)
		})
}

func (s *shownIndex) human(w io.Writer) {
	percent := func(n int64) float64 { return 100 * float64(n) / float64(max(s.Packed, 1)) }
	fmt.Fprintf(w, "%s@%s: index of %s, %.2f %% of %s in %d layers\n", s.Image, s.Digest, size(s.Bytes), percent(s.Bytes), size(s.Packed),
		len(s.Layers))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LAYER\tSIZE\tUNPACKED\tENTRIES\tPOINTS\tEXTENTS\tTREE\tWINDOWS\tDIGESTS")
	var tree, windows, digests int64
	for _, l := range s.Layers {
		tree, windows, digests = tree+l.Tree, windows+l.Windows, digests+l.Digests
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\n", short(l.Digest), size(l.Size), size(l.Plain), l.Entries, l.Points, l.Extents,
			size(l.Tree), size(l.Windows), size(l.Digests))
	}
	fmt.Fprintf(t, "of the image\t\t\t\t\t\t%.2f %%\t%.2f %%\t%.2f %%\n", percent(tree), percent(windows), percent(digests))
	t.Flush()
}

// savedIndex returns the index of the image that was made on this machine.
func (r *remoteImage) savedIndex() ([]byte, error) {
	store, err := openIndexStore()
	if err != nil {
		return nil, err
	}
	return store.get(r.manifest.Digest)
}

// indexOf returns the image's index, made now if it was not before.
func (a *app) indexOf(ctx context.Context, r *remoteImage) ([]byte, error) {
	data, err := r.savedIndex()
	if errors.Is(err, os.ErrNotExist) {
		data, _, err = a.createIndex(ctx, r)
	}
	return data, err
}

// document reads the image's manifest.
func (r *remoteImage) document(ctx context.Context) (m ocispec.Manifest, err error) {
	_, doc, err := r.registry.Manifest(ctx, r.repo, r.manifest.Digest.String())
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(doc, &m)
}

// checkIndex insists on an index of the image's layers.
func (r *remoteImage) checkIndex(ctx context.Context, data []byte) error {
	shown, err := describeIndex(r.ref, r.manifest.Digest, data)
	if err != nil {
		return err
	}
	m, err := r.document(ctx)
	if err != nil {
		return err
	}
	ours := map[digest.Digest]bool{}
	for _, l := range m.Layers {
		ours[l.Digest] = true
	}
	for _, l := range shown.Layers {
		if !ours[l.Digest] {
			return fmt.Errorf("the index is of another image: %s has no layer %s", r.ref, l.Digest)
		}
	}
	return nil
}

const indexAtOnce = 2

// createIndex reads the image's layers and keeps what was found.
func (a *app) createIndex(ctx context.Context, r *remoteImage) ([]byte, *createdIndex, error) {
	began := time.Now()
	m, err := r.document(ctx)
	if err != nil {
		return nil, nil, err
	}
	p := &indexing{a: a, r: r, indexes: make([][]byte, len(m.Layers)), skipped: map[digest.Digest]string{}}
	for _, l := range m.Layers {
		p.total += l.Size
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(indexAtOnce)
	first := map[digest.Digest]bool{}
	for i, l := range m.Layers {
		if !first[l.Digest] {
			first[l.Digest] = true
			group.Go(func() error { return p.layer(gctx, i, l) })
		}
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	var all [][]byte
	for _, one := range p.indexes {
		if one != nil {
			all = append(all, one)
		}
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("no layer needs an index or can have one: %v", p.skipped)
	}
	data := index.Join(all)
	store, err := openIndexStore()
	if err != nil {
		return nil, nil, err
	}
	if err := store.put(savedIndex{Image: r.ref, Digest: r.manifest.Digest, Created: time.Now().UTC(), Bytes: int64(len(data))},
		data); err != nil {
		return nil, nil, err
	}
	shown, err := describeIndex(r.ref, r.manifest.Digest, data)
	if err != nil {
		return nil, nil, err
	}
	return data, &createdIndex{shownIndex: *shown, Seconds: time.Since(began).Seconds(), Skipped: p.skipped}, nil
}

// indexing is the making of one image's index.
type indexing struct {
	a     *app
	r     *remoteImage
	total int64 // packed bytes
	came  atomic.Int64

	mu      sync.Mutex // guards the fields below
	indexes [][]byte   // by layer
	skipped map[digest.Digest]string
	told    time.Time
}

func (p *indexing) layer(ctx context.Context, i int, l ocispec.Descriptor) error {
	skip := func(why string) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.skipped[l.Digest] = why
		p.came.Add(l.Size)
		return nil
	}
	if formats.Indexed(l) {
		return skip("it has an index of its own")
	}
	codec, known := scan.CodecOf(l.MediaType)
	if !known {
		return skip("media type " + l.MediaType + " is not known")
	}
	in, err := p.r.registry.Blob(p.r.repo, l.Digest, l.Size).WithURLs(registry.ForeignURLs(l)).Open(ctx, 0, l.Size, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	found, err := scan.Scan(ctx, &progressReader{in, p}, codec, scan.Options{})
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	if found.Blob != l.Digest {
		return fmt.Errorf("layer %s: the registry serves another blob, %s", l.Digest, found.Blob)
	}
	data, ok := found.Index()
	if !ok {
		return skip("it is one piece that cannot be decoded by parts")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.indexes[i] = data
	return nil
}

// progressReader says once a second how far it is.
type progressReader struct {
	io.Reader
	p *indexing
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	came := r.p.came.Add(int64(n))
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	if r.p.told.IsZero() {
		r.p.told = time.Now()
	}
	if time.Since(r.p.told) > time.Second {
		r.p.told = time.Now()
		r.p.a.note("indexing  %s of %s", size(came), size(r.p.total))
	}
	return n, err
}
