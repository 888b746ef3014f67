package layers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
)

// IndexPolicy is what holds for a repository's published indexes.
type IndexPolicy struct {
	Trust   bool // layers are read by them
	Publish bool // those that are made here are published
}

// Indexes are those of layers that have none of their own: made on this node while a layer was imported,
// one file a layer, or published beside an image.
type Indexes struct {
	dir      string
	opts     *Options
	promises *promises
	places   *Places
	proofs   *Proofs
	decoder  *decoder
	granted  *Grants
	tracer   *Tracer
	cached   func(s *Source) bool // Layers.Cached
	log      *slog.Logger
	life     context.Context
	started  *sync.WaitGroup

	mu        sync.Mutex                      // guards the fields below, and changes of dir
	published map[string]*publication         // by Image.ID
	making    map[digest.Digest]chan struct{} // layers whose index is being made; closed when it is there
}

// A publication is an image's published indexes on their way.
type publication struct {
	repo   registry.Repository    // whose layers they are for
	wants  map[digest.Digest]bool // layers
	done   chan struct{}
	layers map[digest.Digest][]byte // after done
	share  *memory.Share            // of them
}

const (
	indexesDir    = "indexes"
	indexSuffix   = ".index"
	maxIndexBytes = 512 << 20 // kept on a node; the oldest go
	indexAskFor   = 20 * time.Second
	indexWait     = 3 * time.Second // for a published index, before a layer is imported
	// indexLater has the index of a layer wait until the container that the import was for has begun.
	indexLater = time.Second
)

var indexKind = durable.Kind{
	Name: "*" + indexSuffix,
	Lost: "a layer's index that was made on this node: the layer is imported when it is pulled next, which makes it again",
	Do:   "remove this file",
}

// ListDamaged returns what was set aside below a root of what this package keeps there.
func ListDamaged(root string) ([]durable.Damage, error) {
	all, err := durable.ListDamaged(filepath.Join(root, indexesDir), indexKind)
	some, rerr := durable.ListDamaged(root, refusalsKind)
	return append(all, some...), errors.Join(err, rerr)
}

// clean deletes what replacements of files that a power cut ended have left.
func (x *Indexes) clean() {
	if err := durable.Sweep(x.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		x.log.Warn("files that were never finished stay", "dir", x.dir, "err", err)
	}
}

func (x *Indexes) path(layer digest.Digest) string {
	return filepath.Join(x.dir, layer.Encoded()+indexSuffix)
}

// size returns how many bytes a layer's index has that was made here. What is there and cannot be one is set aside; one that
// turns out to be damaged when it is decoded is replaced after the import that follows.
func (x *Indexes) size(layer digest.Digest) (int64, error) {
	st, err := os.Stat(x.path(layer))
	switch {
	case err != nil:
		return 0, err
	case !st.Mode().IsRegular() || st.Size() > maxIndexBytes:
		err := fmt.Errorf("%w: %v of %d bytes", layout.ErrInvalid, st.Mode().Type(), st.Size())
		return 0, errors.Join(err, durable.SetAside(x.path(layer), indexKind, x.log, err))
	}
	return st.Size(), nil
}

// get returns a layer's index that was made here. Who calls it has the memory.
func (x *Indexes) get(layer digest.Digest) ([]byte, error) {
	if _, err := x.size(layer); err != nil {
		return nil, err
	}
	return os.ReadFile(x.path(layer))
}

// put keeps a layer's index.
func (x *Indexes) put(layer digest.Digest, data []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return err
	}
	if err := durable.Replace(x.path(layer), data, 0o600); err != nil {
		return err
	}
	return x.pruneLocked()
}

// pruneLocked removes the oldest indexes while there are too many bytes of them.
func (x *Indexes) pruneLocked() error {
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		return err
	}
	var all []os.FileInfo
	total := int64(0)
	for _, e := range entries {
		if st, err := e.Info(); err == nil { // or it was removed
			all = append(all, st)
			total += st.Size()
		}
	}
	slices.SortFunc(all, func(a, b os.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	var errs []error
	for _, st := range all {
		if total <= maxIndexBytes {
			break
		}
		errs = append(errs, os.Remove(filepath.Join(x.dir, st.Name())))
		total -= st.Size()
	}
	return errors.Join(errs...)
}

// keep makes the index of a layer that was imported within limits: soon, or at once if there is no memory to wait with. An index that
// waits outlives what the import has asked for, and has all of its memory itself.
func (x *Indexes) keep(s *Source, layer *scan.Layer, limits *layout.Limits) {
	d := s.Descriptor.Digest
	share, ok := x.decoder.memory.Try(userOf(s.Repo), layer.IndexMemory())
	if !ok {
		err := limits.Ask(layer.EncodeMemory())
		if err == nil {
			err = x.encode(d, layer)
		}
		x.warnLost(d, err)
		return
	}
	made := make(chan struct{})
	x.mu.Lock()
	x.making[d] = made
	x.mu.Unlock()
	x.started.Go(func() {
		defer func() {
			share.Release()
			close(made)
			x.mu.Lock()
			delete(x.making, d)
			x.mu.Unlock()
		}()
		select {
		case <-time.After(indexLater):
		case <-x.life.Done():
		}
		x.warnLost(d, x.encode(d, layer))
	})
}

// encode makes a layer's index, if there can be one.
func (x *Indexes) encode(d digest.Digest, layer *scan.Layer) error {
	data, ok := layer.Index()
	if !ok {
		return nil
	}
	return x.put(d, data)
}

// warnLost says that an error keeps a layer's index from being kept; nil says nothing.
func (x *Indexes) warnLost(d digest.Digest, err error) {
	if err != nil {
		x.log.Warn("index not kept: the layer's next reader needs all of it", "digest", d, "err", err)
	}
}

// made returns the size of a layer's index, once it is there if it is being made.
func (x *Indexes) made(ctx context.Context, layer digest.Digest) (int64, error) {
	x.mu.Lock()
	making := x.making[layer]
	x.mu.Unlock()
	if making != nil {
		select {
		case <-making:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	return x.size(layer)
}

// Expect has the published indexes of an image asked for, if they are trusted and a layer needs
// one.
func (x *Indexes) Expect(img Image) {
	reg, ok := x.places.registry.(Artifacts)
	if !ok || !x.opts.IndexOf(img.Repo).Trust || x.opts.TrustOf(img.Repo).BeforeUse || img.Target.Digest == "" {
		return // a diffID that is checked before use says nothing of a tree that somebody publishes
	}
	x.mu.Lock()
	asked := x.published[img.ID()] != nil
	x.mu.Unlock()
	if asked { // by an earlier layer's Prepare
		return
	}
	p := &publication{repo: img.Repo, wants: map[digest.Digest]bool{}, done: make(chan struct{})}
	for i := range img.Layers {
		s := &img.Layers[i]
		if promised, err := x.promises.promiseOf(s); err != nil || promised.format != formatImport || x.cached(s) {
			continue
		}
		if _, err := os.Stat(x.path(s.Descriptor.Digest)); err != nil {
			p.wants[s.Descriptor.Digest] = true
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(p.wants) == 0 || x.published[img.ID()] != nil {
		return
	}
	x.published[img.ID()] = p
	x.started.Go(func() {
		defer close(p.done)
		ctx, cancel := context.WithTimeout(x.life, indexAskFor)
		defer cancel()
		began := time.Now()
		layers, n, share, err := x.ask(ctx, reg, img)
		if err == nil {
			err = share.Keep(n)
		}
		x.tracer.Ended(began, Span{Kind: "index", What: "published", Len: n, Err: err})
		if err == nil {
			p.layers, p.share = layers, share
			return
		}
		share.Release()
		if !errors.Is(err, registry.ErrNotFound) && ctx.Err() == nil {
			x.log.Warn("published index ignored", "image", img.Ref, "manifest", img.Target.Digest, "err", err)
		}
	})
}

// ask returns the indexes that are published of an image's layers, how many bytes they have, and the memory that they
// take, which is to be released with an error, too.
func (x *Indexes) ask(ctx context.Context, reg Artifacts, img Image) (map[digest.Digest][]byte, int64, *memory.Share, error) {
	data, share, err := x.places.Artifact(ctx, reg, img, index.Artifact, func(int64) int64 { return 0 })
	if err != nil {
		return nil, 0, nil, err
	}
	all, err := index.Split(data)
	if err != nil {
		return nil, 0, share, err
	}
	layers := map[digest.Digest][]byte{}
	for _, one := range all {
		h, err := index.ReadHead(one)
		if err != nil {
			return nil, 0, share, err
		}
		layers[h.Digest] = one
	}
	return layers, int64(len(data)), share, nil
}

// Sweep forgets what was published of images that were asked for a while ago.
func (x *Indexes) Sweep(keep func(image string) bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for m, p := range x.published {
		select {
		case <-p.done:
			if !keep(m) {
				p.share.Release()
				delete(x.published, m)
			}
		default:
		}
	}
}

// A foundIndex is a layer's index, made on this node or published in the layer's own repository.
type foundIndex struct {
	size int64
	read func() ([]byte, error) // once there is memory for size bytes
	by   cache.Voucher
}

// find returns a layer's index, or nil.
func (x *Indexes) find(ctx context.Context, s *Source) *foundIndex {
	d := s.Descriptor.Digest
	if n, err := x.size(d); err == nil {
		return &foundIndex{n, func() ([]byte, error) { return x.get(d) }, madeHere}
	}
	x.mu.Lock()
	var waiting []*publication
	for _, p := range x.published {
		if p.repo == s.Repo && p.wants[d] {
			waiting = append(waiting, p)
		}
	}
	x.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, indexWait)
	defer cancel()
	for _, p := range waiting {
		select {
		case <-p.done:
			if data := p.layers[d]; data != nil {
				// Its publication has the memory.
				return &foundIndex{0, func() ([]byte, error) { return data, nil }, cache.ByTable(publishedBy(data, s))}
			}
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// byMadeIndex makes a layer's tree of the index that was made of it, here or elsewhere. It returns nothing if
// there is none.
func (x *Indexes) byMadeIndex(ctx context.Context, o *Opening) (*Tree, error) {
	s := &o.src
	// Whether the layer can be read by parts shows while the index comes.
	able := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.started.Go(func() {
		err := x.places.firstBytes(ctx, s)
		if err == nil {
			x.proofs.proveRead(ctx, o)
		}
		able <- err
	})
	found := x.find(ctx, s)
	if found == nil {
		if !x.places.registry.ServesRanges(ctx, s.Repo.Host) { // the first bytes may be of all of them
			<-able
		}
		return nil, nil
	}
	if err := <-able; err != nil {
		return nil, err
	}
	decode := func(ctx context.Context) (*Tree, error) {
		return x.decoder.inMemory(ctx, o, indexMemory+found.size, func(limits layout.Limits) (*Tree, error) {
			data, err := found.read()
			if err != nil {
				return nil, err
			}
			return x.byIndex(ctx, s, data, found.by, limits)
		})
	}
	if found.by == madeHere { // names of files are not for everybody, too
		if err := x.granted.AskMade(ctx, s, decode); err != nil {
			return nil, err
		}
	}
	return decode(ctx)
}

// byIndex makes a layer's tree of an index that is not in the layer.
func (x *Indexes) byIndex(ctx context.Context, s *Source, data []byte, by cache.Voucher, limits layout.Limits) (*Tree, error) {
	h, err := index.ReadHead(data)
	if err != nil {
		return nil, err
	}
	if h.Digest != s.Descriptor.Digest || h.Size != s.Descriptor.Size {
		return nil, fmt.Errorf("%w: it is the index of layer %s, of %d bytes", layout.ErrInvalid, h.Digest, h.Size)
	}
	lay, err := index.Decode(ctx, data, limits)
	if err != nil {
		return nil, err
	}
	return &Tree{by: by, layout: lay}, nil
}
