package volume

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/remora-storage/remora/remote/store"
)

// Errors that callers act on.
var (
	// ErrFenced says that another node has taken the volume: nothing that was not committed will be.
	ErrFenced = errors.New("another node has taken the volume")
	// ErrClosed says that the volume was closed.
	ErrClosed = errors.New("the volume is closed")
	// ErrReadOnly says that a volume cannot be written to.
	ErrReadOnly = errors.New("the volume is read-only")
)

// A Cache keeps copies of parts of segments. What it returns may be wrong or absent: readers check it. All methods are
// safe for concurrent use.
type Cache interface {
	// ReadAt fills p with what it has of an object from off, and reports whether it may be all of it.
	ReadAt(key string, p []byte, off int64) bool
	// WriteAt keeps p, or not.
	WriteAt(key string, p []byte, off int64)
	// Drop forgets an object.
	Drop(key string)
}

// A Lease is what a node holds while it owns volumes.
type Lease interface {
	// Wait returns nil at once while the lease is certain, and waits while it is not. It fails with ErrFenced if
	// the node has lost it, and cannot have it again.
	Wait(ctx context.Context) error
	// Certain says whether it is certain now, and which life of the node has it. It fails as Wait does.
	Certain() (life ID, certain bool, err error)
	// Changed returns what is closed when any of that is to be asked again.
	Changed() <-chan struct{}
}

// Options of a Volume. Store is needed.
type Options struct {
	Store   store.Store
	Cache   Cache // nil for none
	Memory  int64 // bytes that the volume may take, about; default 256 MiB
	Uploads int   // segments on their way to the store at a time; default 4
	// Near says that the store is this machine's: letting writes get far ahead of it gains nothing, since what segments
	// are made of then has to be read again from the disk that both share.
	Near bool
	// Quiet knows when nobody but this node uses the volume; nil if it may always be used by others.
	Quiet *Quiet
	Log   *slog.Logger
}

const (
	defaultMemory  = 256 << 20
	defaultUploads = 4
	maxSealed      = 4  // generations on their way to the store
	maxUncommitted = 16 // and those that are there and that the head does not name yet
	checkpointTail = 64
	checkpointSize = 512 << 20
)

func (o Options) withDefaults() Options {
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	if o.Uploads == 0 {
		o.Uploads = defaultUploads
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Cache == nil {
		o.Cache = noCache{}
	}
	if o.Quiet == nil {
		o.Quiet = NewQuiet()
	}
	return o
}

type noCache struct{}

func (noCache) ReadAt(string, []byte, int64) bool { return false }
func (noCache) WriteAt(string, []byte, int64)     {}
func (noCache) Drop(string)                       {}

// A Volume is one that this process owns. It implements blockdev.Writer and its abilities.
type Volume struct {
	id ID
	// class and readOnly are the head's, which never change.
	class    Class
	readOnly bool

	size    atomic.Int64 // bytes
	life    life
	opts    Options
	lease   Lease
	nodes   *mapNodes
	journal *journal
	owned   *owned
	log     *slog.Logger
	wait    waiter
	uploads *semaphore.Weighted // one for each segment on its way
	streams streams
	sums    *blockSums
	// updating is held by whoever changes the head.
	updating *semaphore.Weighted

	reuse sync.RWMutex // held for reading while the journal is read by place; taken before mu

	mu        sync.RWMutex // guards the fields below
	head      *Head
	version   string
	root      *mapRoot
	active    *generation
	sealed    []*generation // oldest first
	tail      *extents      // committed since the last checkpoint, or since tailFrom if one is being made
	tailSegs  map[uint64]SegmentRef
	frozen    *extents // what a checkpoint under way puts into the map
	due       *checkpoint
	unsure    []*Head // that may have been written, or be on their way still
	making    bool    // a checkpoint is being made
	written   uint64  // last write that is in active or before
	committed uint64  // last write that the head holds
	next      uint64  // number of the next segment
	flushTo   uint64  // somebody waits for the commit of this write
	draining  bool
	err       error
	progress  chan struct{} // closed, and made anew, when committed or err changes
	waiting   map[string]waitState
	stats     Stats // but for what is counted below

	bytesWritten, bytesRead, flushes atomic.Int64

	kick    chan struct{}
	stop    context.CancelCauseFunc
	started sync.WaitGroup
	// spawn starts what works in the background and ends with the volume. It is nil until run, and must not be
	// called once err is set, but by what it has started.
	spawn func(func(ctx context.Context))
}

type waitState struct {
	err   error
	since time.Time
}

// A generation is a part of the history of writes that is committed as a whole.
type generation struct {
	after, cut uint64 // the writes after the one and up to the other
	x          extents
	bytes      int64     // in the journal
	oldest     time.Time // of its writes
	end        cursor    // in the journal, behind its last record

	segments []SegmentRef // once uploaded
	located  []extent
	uploaded bool
}

// Stats are counts since the volume was opened.
type Stats struct {
	Written  int64 // bytes of requests
	Read     int64
	Uploaded int64 // bytes of segments
	Map      int64 // bytes of map nodes
	Commits  int64
	Flushes  int64
}

// newVolume makes a Volume of a head that this node owns.
func newVolume(h *Head, version string, lease Lease, opts Options) *Volume {
	v := &Volume{
		id: h.ID, class: h.Class, readOnly: h.Mode == ModeReadOnly, opts: opts, lease: lease, log: opts.Log.With("volume", h.Name),
		uploads: semaphore.NewWeighted(int64(opts.Uploads)),
		head:    h, version: version, root: &mapRoot{}, tail: &extents{}, tailSegs: map[uint64]SegmentRef{},
		active:  &generation{after: h.Write, cut: h.Write},
		written: h.Write, committed: h.Write, next: h.Segment + 1,
		updating: semaphore.NewWeighted(1), progress: make(chan struct{}), kick: make(chan struct{}, 1), waiting: map[string]waitState{},
	}
	v.size.Store(h.Size)
	v.life.v = v
	v.life.named.Store(&h.Owner.Incarnation)
	v.wait = waiter{log: v.log, waits: v.setWaiting}
	v.nodes = newMapNodes(opts.Store, h.ID, opts.Memory*3/16, v.wait)
	v.sums = newBlockSums(opts.Memory / 32)
	return v
}

// run starts what works in the background. Close ends it.
func (v *Volume) run() {
	ctx, stop := context.WithCancelCause(context.Background())
	v.stop = stop
	v.mu.Lock()
	v.spawn = func(f func(context.Context)) { v.started.Go(func() { f(ctx) }) }
	v.mu.Unlock()
	for range journalAhead {
		v.started.Go(func() { v.journal.run(ctx) })
	}
	v.started.Go(func() { v.pump(ctx) })
	v.started.Go(func() { v.life.keep(ctx) })
}

// Size implements blockdev.Device.
func (v *Volume) Size() int64 { return v.size.Load() }

// BlockSize implements blockdev.Device.
func (v *Volume) BlockSize() int { return Block }

// ID returns what the volume is called in its store.
func (v *Volume) ID() ID { return v.id }

// Head returns a copy of the head as this node knows it.
func (v *Volume) Head() *Head {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.head.clone()
}

// failLocked ends the volume: every request fails from now on.
func (v *Volume) failLocked(err error) {
	if v.err == nil {
		v.err = err
	}
	v.progressLocked()
}

func (v *Volume) fail(err error) {
	v.mu.Lock()
	first := v.err == nil
	v.failLocked(err)
	v.mu.Unlock()
	if first && !errors.Is(err, ErrClosed) {
		v.log.Error("the volume has failed: everything that uses it gets errors", "err", err)
	}
}

// failed returns why the volume has failed, nil if it has not.
func (v *Volume) failed() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.err
}

func (v *Volume) progressLocked() {
	close(v.progress)
	v.progress = make(chan struct{})
}

func (v *Volume) wake() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

func (v *Volume) setWaiting(what string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	setWaiting(v.waiting, what, err)
	if v.journal != nil {
		v.journal.setStalled(len(v.waiting) > 0)
	}
}
