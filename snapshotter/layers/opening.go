package layers

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/format/toc"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
)

const openTimeout = 2 * time.Minute // for an index, all retries included

// An Opening is one layer's index on its way here.
type Opening struct {
	src   Source
	key   string
	whole bool // the layer is read whole, whatever table its manifest names
	done  chan struct{}
	stop  context.CancelFunc // ends it before its time
	proof *proof
	got   atomic.Int64 // packed bytes of an import so far
	gone  atomic.Bool  // the image was removed: what arrived is not kept
	// after done
	err   error
	index *Tree       // nil if the image is built already; it may hold data
	file  *cache.File // set if the image does not depend on the layers below
	ended time.Time
}

// Source returns where the layer is.
func (o *Opening) Source() Source { return o.src }

// Done is closed when the opening has ended.
func (o *Opening) Done() <-chan struct{} { return o.done }

func (o *Opening) hasEnded() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// IsOf reports whether an opening was begun for an image.
func (o *Opening) IsOf(s *Source) bool {
	return o.src.Image == s.Image && o.src.Namespace == s.Namespace
}

// proves reports whether an opening shows by itself that a layer can be read for an image: its registry, or containerd's content store,
// has served it for that image, or nothing of the layer is missing.
func (o *Opening) proves(s *Source) bool {
	if o.IsOf(s) && o.proof.isShown() {
		return true
	}
	return o.hasEnded() && o.file != nil && o.file.Complete()
}

// Proves reports whether there is an opening that shows that a layer can be read for an image, or none need show it, since the operator
// gives the image what others had.
func (l *Layers) Proves(s *Source) bool {
	if l.opts.TrustOf(s.Repo).Shared {
		return true
	}
	key := l.KeyOf(s)
	l.mu.Lock()
	o := l.openings[key]
	l.mu.Unlock()
	return o != nil && o.proves(s)
}

// Err returns why the opening failed, once it is done; nil if it did not.
func (o *Opening) Err() error { return o.err }

// Came returns how many packed bytes of a layer that is imported are here.
func (o *Opening) Came() int64 { return o.got.Load() }

// fill reads the layer, its index or all of it, and builds the image unless it depends on the layers
// below.
func (l *Layers) fill(ctx context.Context, o *Opening) error {
	promised, err := l.promiseOf(&o.src)
	if err != nil {
		return err
	}
	if o.whole {
		if promised, err = promised.whole(); err != nil {
			return err
		}
	}
	if f := l.cachedImage(&o.src, "", promised.tableOf(&o.src)); f != nil {
		err := l.Granted.Ask(ctx, f, &o.src)
		if err == nil {
			o.file = l.Sources.Add(f, &o.src)
			return nil
		}
		if !errors.Is(err, cache.ErrNotByParts) {
			return err
		}
		if promised, err = promised.whole(); err != nil { // all of it is compared, by its digest
			return err
		}
	}
	if err := l.refusals.of(&o.src); err != nil { // it was claimed before that was known, and is unpacked
		return err
	}
	x, err := l.read(ctx, o, promised)
	if err != nil {
		return err
	}
	l.Granted.note(&o.src, x.name(&o.src))
	if len(x.layout.Implicit) > 0 {
		o.index = x
		return nil
	}
	f, made, err := l.build(&o.src, x, "")
	if err != nil {
		return err
	}
	o.file, err = l.take(ctx, &o.src, x, f, made)
	return err
}

// read reads a layer's index, and if there is none that can be used, all of the layer.
func (l *Layers) read(ctx context.Context, o *Opening, p promise) (*Tree, error) {
	// What containerd has is not fetched, and a host that serves no ranges is not asked for them.
	stored := p.noImport == "" && l.Places.Stored(ctx, &o.src)
	if stored { // whoever brought it there
		if err := l.Imports.orWhole(ctx, &o.src, l.Granted.AskStored(ctx, &o.src)); err != nil {
			return nil, err
		}
	}
	rangeless := p.noImport == "" && l.Places.lacksRanges(ctx, &o.src)
	if p.format != formatImport && !rangeless && !stored {
		x, err := l.readIndex(ctx, o, p)
		if err == nil || !errors.Is(err, ErrNotLazy) || p.noImport != "" {
			return x, err
		}
		l.log.Warn("layer is imported: its index cannot be used", "digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
		return l.Imports.layer(ctx, o, p.codec)
	}
	if !p.eager && !rangeless && !stored {
		x, err := l.Indexes.byMadeIndex(ctx, o)
		if x != nil {
			return x, nil
		}
		if err != nil {
			l.log.Warn("layer is imported: the index that was made of it cannot be used",
				"digest", o.src.Descriptor.Digest, "image", o.src.Image, "err", err)
		}
	}
	return l.Imports.layer(ctx, o, p.codec)
}

func (l *Layers) readIndex(ctx context.Context, o *Opening, p promise) (*Tree, error) {
	release, err := l.Proofs.place(ctx, l.slots, o)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	counted := &countedBlob{Blob: l.Places.blob(&o.src), served: func() { l.Proofs.prove(o) }}
	began := time.Now()
	x, err := l.decoder.inMemory(ctx, o, indexMemory, func(limits layout.Limits) (*Tree, error) {
		x, err := p.index.Open(registry.BeforeBulk(ctx), counted, limits)
		if err != nil {
			return nil, refusal(err)
		}
		return &Tree{by: p.tableOf(&o.src), layout: x.Layout, tail: x.Tail, fetched: counted.n}, nil
	})
	l.Tracer.Ended(began, Span{Kind: "index", Digest: o.src.Descriptor.Digest, Len: counted.n, Err: err})
	return x, err
}

// countedBlob is a layer's blob as the front end wants it.
type countedBlob struct {
	Blob
	n      int64
	served func() // is called once the blob was served by range
}

func (b *countedBlob) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.n += n
	r, err := b.Blob.Open(ctx, off, n, 0)
	if err == nil {
		b.served()
	}
	return r, err
}

var _ toc.Blob = (*countedBlob)(nil)

// A Tree is what an opened layer shows, before an image was made of it.
type Tree struct {
	by      cache.Voucher // the table that it is read by; "" if it was read whole
	layout  *layout.Layout
	tail    []byte        // what is known of the blob's last unit, packed, or nil
	diffID  digest.Digest // of the layer, if it was read whole
	fetched int64         // bytes that came for it
	share   *memory.Share // of what it takes until an image was made of it

	mu       sync.Mutex    // guards imported
	imported *cache.Import // the layer's data, if it was read whole; nil once an image was made of it
}

// name is what the tree was read by, as the name of an image has it.
func (x *Tree) name(s *Source) cache.Name {
	return cache.Name{Blob: s.BlobName(), Voucher: cmp.Or(x.by, cache.Whole)}
}

// take returns the layer's data, once.
func (x *Tree) take() *cache.Import {
	x.mu.Lock()
	defer x.mu.Unlock()
	im := x.imported
	x.imported = nil
	return im
}
