package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
)

// Options of a Host.
type Options struct {
	Root string // a directory of its own
	// Locks is a directory that all processes of this machine share, in which it is locked who serves a node. "" locks
	// nothing.
	Locks string
	// OpenStore opens a store by its URL. It makes no request.
	OpenStore func(url string) (store.Store, error)
	Cache     volume.Cache
	Memory    int64 // bytes for each volume; 0 for the default
	Journal   int64 // bytes of a journal; 0 for the default
	TTL       time.Duration
	Log       *slog.Logger
}

// A Host is a node's volumes. Nobody else uses its Root.
type Host struct {
	opts     Options
	journals *volume.JournalDir
	spare    spareMaker
	id       identity
	life     volume.ID
	requests *blockdev.Metrics

	lost bool // the record of an earlier life was
	lock *nodeLock

	mu      sync.Mutex // guards the fields below
	record  record
	stores  map[volume.ID]*hostStore
	at      map[string]*hostStore // by the URLs that were seen to lead to them
	open    map[volume.ID]*opened
	started sync.WaitGroup
}

// opened is a volume that this node owns or is taking.
type opened struct {
	Attached
	ready chan struct{} // closed when v or err is set
	v     *volume.Volume
	err   error
	stop  context.CancelFunc
	quiet *volume.Quiet
	waits []volume.Wait // of Host.mu: why its store is not there yet

	journals *volume.JournalDir
}

// newOpened returns a volume that is about to be taken. stop ends that.
func newOpened(h *Host, a Attached, stop context.CancelFunc) *opened {
	return &opened{Attached: a, ready: make(chan struct{}), stop: stop, quiet: volume.NewQuiet(), journals: h.journals}
}

// waitsForStore notes why a volume's store is not there, nil when it is.
func (h *Host) waitsForStore(o *opened, err error) {
	h.mu.Lock()
	since := time.Now()
	first := len(o.waits) == 0
	if !first {
		since = o.waits[0].Since
	}
	if o.waits = nil; err != nil {
		o.waits = []volume.Wait{{What: "find the store", Reason: err, Since: since}}
	}
	h.mu.Unlock()
	if first && err != nil {
		h.opts.Log.Warn("the store of a volume is not there; trying again", "volume", o.Name, "store", o.Store, "err", err)
	}
}

// size returns the bytes of the volume: what it says itself, once it can.
func (o *opened) size() int64 {
	select {
	case <-o.ready:
		if o.v != nil {
			return o.v.Size()
		}
	default:
	}
	return o.Size
}

// Attached is a volume that this node owns.
type Attached struct {
	ID    volume.ID `json:"id"`
	Name  string    `json:"name"`
	Store string    `json:"store"`
	Size  int64     `json:"size"` // bytes
}

// ErrNotAttached says that this node does not own a volume.
var ErrNotAttached = errors.New("not attached on this node")

// Open takes over what an earlier process has left. Close must be called.
func Open(opts Options) (*Host, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(opts.Root, 0o700); err != nil {
		return nil, err
	}
	h := &Host{opts: opts, life: volume.NewID(), requests: blockdev.NewMetrics("volume"), stores: map[volume.ID]*hostStore{},
		at: map[string]*hostStore{}, open: map[volume.ID]*opened{}}
	var err error
	if err := durable.Sweep(opts.Root); err != nil {
		return nil, err
	}
	if h.journals, err = volume.NewJournalDir(filepath.Join(opts.Root, "journals"), opts.Journal); err != nil {
		return nil, err
	}
	h.spare = newSpareMaker(h)
	if err := h.loadRecord(); err != nil {
		return nil, err
	}
	if h.id, err = loadIdentity(filepath.Join(opts.Root, NodeFile.Name), h.record.Node, opts.Log); err != nil {
		return nil, err
	}
	if h.lock, err = lockNode(opts.Locks, h.id.Node, opts.Root); err != nil {
		return nil, err
	}
	return h, nil
}

// NodeID returns this node's id in its stores.
func (h *Host) NodeID() volume.ID { return h.id.Node }

// Attached returns what this node owns.
func (h *Host) Attached() []Attached {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.record.Attached)
}

// AttachOptions say how Attach takes a volume.
type AttachOptions struct {
	AcceptLoss bool
	Progress   func(string)
}

// Attach takes a volume for this node and returns its device. One that is attached already is returned as it is.
func (h *Host) Attach(ctx context.Context, url string, head *volume.Head, opts AttachOptions) (*Device, error) {
	s, err := finder{h}.find(ctx, url)
	if err != nil {
		return nil, err
	}
	a := Attached{ID: head.ID, Name: head.Name, Store: s.url, Size: head.Size}
	h.mu.Lock()
	if o, ok := h.open[a.ID]; ok {
		h.mu.Unlock()
		return newDevice(o, h.requests), o.wait(ctx)
	}
	if s.unsafe != nil {
		h.mu.Unlock()
		return nil, s.unsafe
	}
	o := newOpened(h, a, func() {})
	h.open[a.ID] = o
	known := slices.ContainsFunc(h.record.Attached, func(x Attached) bool { return x.ID == a.ID })
	if !known {
		h.record.Attached = append(h.record.Attached, a)
	}
	h.record.remember(a.Name, s.url)
	h.record.Had[a.ID] = a
	err = h.saveLocked()
	h.mu.Unlock()
	if err == nil {
		o.v, err = volume.Attach(ctx, a.ID, s.member, h.journals, volume.AttachOptions{
			Options: h.volumeOptions(s, o), AcceptLoss: opts.AcceptLoss, Seen: seen(h, a.ID), Progress: opts.Progress,
		})
	}
	if err != nil {
		o.err = err
		close(o.ready)
		return nil, errors.Join(err, h.forget(a.ID, !known && !errors.Is(err, volume.ErrHalfTaken)))
	}
	if err := saw(h, o.v.Head()); err != nil { // what it protects from is rare
		h.opts.Log.Warn("how a volume's head was seen is not written down", "volume", o.Name, "err", err)
	}
	close(o.ready)
	h.started.Go(h.tellEvents)
	h.spare.want()
	return newDevice(o, h.requests), nil
}

func (h *Host) volumeOptions(s *hostStore, o *opened) volume.Options {
	opts := volume.Options{Store: s, Cache: h.opts.Cache, Memory: h.opts.Memory, Quiet: o.quiet, Log: h.opts.Log}
	if store.IsNear(s) {
		opts.Cache, opts.Near = nil, true
	}
	return opts
}

// find returns a volume that is open here, or being opened; nil if it is not.
func (h *Host) find(id volume.ID) *opened {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open[id]
}

// forget takes a volume off the list of open ones, and out of the record.
func (h *Host) forget(id volume.ID, record bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.open, id)
	if !record {
		return nil
	}
	h.record.Attached = slices.DeleteFunc(h.record.Attached, func(a Attached) bool { return a.ID == id })
	return h.saveLocked()
}

// Resume returns the device of a volume that an earlier process had attached, at once: requests wait until the volume
// is open again, however long its store takes. used says that the kernel still has the device, so that nothing
// acknowledged may be missing.
func (h *Host) Resume(id volume.ID, used bool) (*Device, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o, ok := h.open[id]; ok {
		return newDevice(o, h.requests), nil
	}
	i := slices.IndexFunc(h.record.Attached, func(a Attached) bool { return a.ID == id })
	if i < 0 {
		return nil, h.notAttached(id)
	}
	ctx, stop := context.WithCancel(context.Background())
	o := newOpened(h, h.record.Attached[i], stop)
	h.open[id] = o
	h.started.Go(func() {
		defer close(o.ready)
		s, err := finder{h}.await(ctx, o.Store, func(err error) { h.waitsForStore(o, err) })
		if err == nil {
			o.v, err = volume.Attach(ctx, id, s.member, h.journals, volume.AttachOptions{
				Options: h.volumeOptions(s, o), Resume: used, Settle: !used, Seen: seen(h, id),
				Progress: func(what string) { h.opts.Log.Info("attaching again", "volume", o.Name, "waits", what) },
			})
		}
		if err != nil {
			o.err = err
			switch {
			case ctx.Err() != nil:
			case errors.Is(err, volume.ErrNotOwned):
				h.opts.Log.Info("a volume is not this node's: what was begun with it did not get that far", "volume", o.Name)
			default:
				h.opts.Log.Error("a volume cannot be opened again: everything that uses it fails until it is detached", "volume", o.Name, "err", err)
			}
		}
	})
	return newDevice(o, h.requests), nil
}

// ResumeAll opens again what was owned and has no device any more: an earlier process was giving it up.
func (h *Host) ResumeAll() error {
	for _, a := range h.Attached() {
		if _, err := h.Resume(a.ID, false); err != nil {
			return err
		}
	}
	return nil
}

// Detach gives a volume up when its store has every acknowledged write. It waits for that until ctx ends; the volume
// stays this node's then. One that this node does not own is no error. Where an Attach has left that open, Detach finds out.
func (h *Host) Detach(ctx context.Context, id volume.ID) error {
	if _, err := h.Resume(id, false); errors.Is(err, ErrNotAttached) {
		return nil
	} else if err != nil {
		return err
	}
	o := h.find(id)
	if o == nil {
		return nil
	}
	if err := o.wait(ctx); err != nil {
		if ctx.Err() == nil && o.v == nil { // it could not be opened: there is nothing to give up
			return h.forget(id, true)
		}
		return err
	}
	switch err := o.v.Detach(ctx); {
	case errors.Is(err, volume.ErrFenced):
		// It is another node's. What that does without stays in the journal, which the next attach here puts aside.
		h.opts.Log.Warn("the volume was lost to another node before it was detached", "volume", o.Name, "err", err)
		return errors.Join(o.v.Close(), h.forget(id, true))
	case err != nil:
		return fmt.Errorf("volume %s: %w", o.Name, err)
	}
	h.mu.Lock()
	h.record.Seen[id] = o.v.Head().Seen()
	h.mu.Unlock()
	return h.forget(id, true)
}

// seen returns what is known of a volume's head, nothing for one that was never attached here.
func seen(h *Host, id volume.ID) volume.Seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record.Seen[id]
}

// saw notes a volume's head.
func saw(h *Host, head *volume.Head) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.record.Seen[head.ID] = head.Seen()
	return h.saveLocked()
}

// Abandon lets a volume go with acknowledged writes in this node's journal only. They come back when the volume is
// attached on this node again.
func (h *Host) Abandon(id volume.ID) error {
	o := h.find(id)
	if o == nil {
		return h.forget(id, true)
	}
	o.stop()
	<-o.ready
	detail := "it was never opened since remorad was started"
	var err error
	if o.v != nil {
		detail = fmt.Sprintf("%d bytes are in this node's journal alone", o.v.Status().AtRisk)
		err = o.v.Close()
	}
	h.note(o.Attached, volume.EventAbandon, detail)
	return errors.Join(err, h.forget(id, true))
}

// Volume returns one that this node owns. ErrNotAttached.
func (h *Host) Volume(ctx context.Context, id volume.ID) (*volume.Volume, error) {
	o := h.find(id)
	if o == nil {
		return nil, ErrNotAttached
	}
	if err := o.wait(ctx); err != nil {
		return nil, err
	}
	return o.v, nil
}

// Head returns the head of a volume that this node owns, as it knows it, without asking the store; nil if it does not know.
func (h *Host) Head(id volume.ID) *volume.Head {
	o := h.find(id)
	if o == nil {
		return nil
	}
	select {
	case <-o.ready:
		if o.v != nil {
			return o.v.Head()
		}
	default:
	}
	return nil
}

// Status returns what a volume does now, what its store was asked for, and for how long the lease is certain. ok is false
// if the volume is not open here.
func (h *Host) Status(id volume.ID) (st volume.Status, requests Requests, margin time.Duration, ok bool) {
	h.mu.Lock()
	o := h.open[id]
	var s *hostStore
	if o != nil {
		s = h.at[o.Store]
		st.Waits = o.waits
	}
	h.mu.Unlock()
	if o == nil || s == nil {
		return st, requests, 0, o != nil
	}
	margin, _ = s.member.Margin()
	select {
	case <-o.ready:
	default:
		st.Waits = append(st.Waits, s.member.Waits()...)
		return st, s.requests(), margin, true
	}
	if o.v == nil {
		return volume.Status{Failed: o.err}, s.requests(), margin, true
	}
	st = o.v.Status()
	st.Waits = append(st.Waits, s.member.Waits()...)
	return st, s.requests(), margin, true
}

// Resized notes a volume's new size.
func (h *Host) Resized(id volume.ID, size int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.record.Attached {
		if h.record.Attached[i].ID == id {
			h.record.Attached[i].Size = size
		}
	}
	return h.saveLocked()
}

// Close leaves everything that is attached to the next process.
func (h *Host) Close() error {
	h.mu.Lock()
	var all []*opened
	for _, o := range h.open {
		o.stop()
		all = append(all, o)
	}
	h.mu.Unlock()
	h.started.Wait()
	var err error
	for _, o := range all {
		<-o.ready
		if o.v != nil {
			err = errors.Join(err, o.v.Close())
		}
	}
	return errors.Join(err, h.lock.Close())
}

func (o *opened) wait(ctx context.Context) error {
	select {
	case <-o.ready:
		return o.err
	case <-ctx.Done():
		return fmt.Errorf("volume %s is not open yet: %w", o.Name, context.Cause(ctx))
	}
}
