package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A binding ties a committed snapshot to a remote layer. It lies beside the snapshot's
// directory, so that the next daemon finds it.
type binding struct {
	id  string // of the snapshot, in the metadata store
	dir string // of the snapshot

	mu      sync.Mutex // guards the fields below
	saved   savedBinding
	key     string   // of saved.Source, by Layers.KeyOf; "" until it is asked for
	attempt *attempt // to mount it; the last one
	file    *cache.File
	how     mountedAs
	ways    []blockdev.Backend // of the lazy mounts on the directory, the oldest first
	pinned  int                // pins of file that direct mounts have
	dead    string             // why what an earlier process had mounted could not be taken over
	removed bool
	gone    *gone           // nil unless it is nowhere any more
	rivals  []layers.Source // by which others were seen to claim its chainID; nil for none
	gated   bool            // there is a gate, with the layer on it or without
}

// savedBinding is a binding on disk, as JSON in layer.json.
type savedBinding struct {
	Version int           `json:"version"`
	Name    string        `json:"name"` // of the snapshot
	Source  layers.Source `json:"source"`
	// CacheID is the image's name in the cache, once it is known.
	CacheID string `json:"cache_id,omitempty"`
	// Parents are the ids of the snapshots below, the nearest first.
	Parents []string `json:"parents,omitempty"`
	// Unpacked is what the layer takes on disk where it was unpacked beside the snapshot's directory, since no image can be made of
	// it; nil where it was not.
	Unpacked *unpackedUsage `json:"unpacked,omitempty"`
	// Quarantined says why the layer must not be used.
	Quarantined string `json:"quarantined,omitempty"`
}

const (
	bindingFile    = "layer.json"
	bindingVersion = 1
)

// mountedAs says how a binding's directory shows its layer.
type mountedAs string

const (
	notMounted    mountedAs = ""
	mountedLazy   mountedAs = "lazy"   // reads may come to us
	mountedDirect mountedAs = "direct" // the kernel reads the complete image file
	// mountedUnpacked is a directory into which the layer was unpacked.
	mountedUnpacked mountedAs = "unpacked"
)

// attempt is one try to mount a binding.
type attempt struct {
	done chan struct{}
	stop context.CancelFunc // ends it before its time; nil for one that has ended
	err  error              // after done
}

func (s savedBinding) write(dir string) error {
	p, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(dir, bindingFile), p, 0o600)
}

// loadBinding reads what lies beside a snapshot of a name. remote is false for an ordinary snapshot, which has nothing there and
// another name. A record that is damaged or gone is not taken for none: the snapshot is quarantined, since without its layer it
// would show an empty directory.
func loadBinding(dir, name string, log *slog.Logger) (saved savedBinding, remote bool) {
	path := filepath.Join(dir, bindingFile)
	saved, found, err := durable.LoadJSON(path, bindingKind, log, func(b *savedBinding) error { return b.check(name) })
	why := ""
	switch {
	case err != nil:
		log.Error("a snapshot's record cannot be used", "key", name, "err", err)
		why = err.Error()
	case found == durable.Damaged:
		why = path + " was damaged"
	case found == durable.Absent && !isRemoteName(name):
		return saved, false
	case found == durable.Absent:
		why = path + " is missing"
		if err := durable.Miss(path, bindingKind, log, "the snapshot is of a remote layer"); err != nil {
			log.Error("a snapshot's record is missing", "key", name, "err", err)
		}
	default:
		return saved, true
	}
	return savedBinding{
		Version: bindingVersion, Name: name, Quarantined: why + ": remove the containers and images that use the snapshot, and pull them again",
	}, true
}

// check says whether a record can be the one that was saved of a snapshot.
func (s *savedBinding) check(name string) error {
	switch {
	case s.Version > bindingVersion:
		return fmt.Errorf("version %d: %w", s.Version, durable.ErrNewer)
	case s.Version != bindingVersion:
		return fmt.Errorf("it has version %d", s.Version)
	case s.Name != name:
		return fmt.Errorf("it is of snapshot %q, not %q", s.Name, name)
	case s.Source.Descriptor.Size < 0:
		return fmt.Errorf("a layer of %d bytes", s.Source.Descriptor.Size)
	case s.CacheID != filepath.Base("/"+s.CacheID) && s.CacheID != "":
		return fmt.Errorf("image %q", s.CacheID)
	}
	if err := s.Source.Descriptor.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", s.Source.Descriptor.Digest, err)
	}
	return nil
}

// number returns the snapshot's id, which the store makes of a counter.
func (b *binding) number() uint64 {
	n, _ := strconv.ParseUint(b.id, 10, 64)
	return n
}

func (b *binding) isLazy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.how == mountedLazy
}

func (b *binding) mounted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.how != notMounted
}

func (b *binding) fsDir() string { return filepath.Join(b.dir, "fs") }

func (b *binding) quarantined() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved.Quarantined
}

// keyOf is promises.KeyOf of a binding's source.
func (s *Snapshotter) keyOf(b *binding) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.key == "" {
		b.key = s.layers.KeyOf(&b.saved.Source)
	}
	return b.key
}

// name is that of the snapshot.
func (b *binding) name() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved.Name
}

func (b *binding) source() layers.Source {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved.Source
}

// ensure returns when the binding's layer is mounted. Callers share an attempt; one that failed
// is made again by the next caller.
func (s *Snapshotter) ensure(ctx context.Context, b *binding) error {
	a := s.startAttempt(b)
	select {
	case <-a.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", b.saved.Source.Describe(), context.Cause(ctx))
	}
	if a.err != nil {
		return a.err
	}
	s.goDirect(b)
	return nil
}

// startAttempt returns the attempt that is under way or has succeeded, or starts one.
func (s *Snapshotter) startAttempt(b *binding) *attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	return s.startAttemptLocked(b)
}

func (s *Snapshotter) startAttemptLocked(b *binding) *attempt {
	if b.attempt != nil {
		select {
		case <-b.attempt.done:
			if b.attempt.err == nil {
				return b.attempt
			}
		default:
			return b.attempt
		}
	}
	a := &attempt{done: make(chan struct{})}
	b.attempt = a
	ctx, cancel := context.WithCancel(s.life)
	a.stop = cancel
	s.started.Go(func() {
		defer close(a.done)
		defer cancel()
		a.err = s.mountBinding(ctx, b)
		s.noteAttempt(b, a.err)
		if a.err != nil {
			a.err = fmt.Errorf("%s: %w", b.saved.Source.Describe(), a.err)
			s.log.Error("layer not mounted", "key", b.saved.Name, "digest", b.saved.Source.Descriptor.Digest, "err", a.err)
		}
	})
	return a
}

// mountBinding finds or builds the layer's image and mounts it.
func (s *Snapshotter) mountBinding(ctx context.Context, b *binding) error {
	b.mu.Lock()
	saved := b.saved
	b.mu.Unlock()
	if saved.Quarantined != "" {
		return fmt.Errorf("quarantined: %s", saved.Quarantined)
	}
	if saved.Unpacked != nil {
		return s.mountAs(b, func() error { return nil })
	}
	f, src, err := s.imageOf(ctx, b, &saved)
	if layers.MayUnpack(err) && ctx.Err() == nil {
		return s.unpack(ctx, b, err)
	}
	if err != nil {
		return err
	}
	if err := s.checkDiffID(ctx, b, f); err != nil {
		return err
	}
	return s.mountAs(b, func() error {
		b.file = f
		s.starts.Found(&src, f)
		if b.saved.CacheID == f.ID() && b.saved.Source.Repo == src.Repo {
			return nil
		}
		b.saved.Source, b.saved.CacheID, b.key = src, f.ID(), ""
		return b.saved.write(b.dir)
	})
}

// mountAs mounts a binding's layer once note, which has the binding's lock, has noted what it is; nothing of a snapshot that was removed
// meanwhile.
func (s *Snapshotter) mountAs(b *binding, note func() error) error {
	s.mounting.RLock()
	defer s.mounting.RUnlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.removed {
		return errors.New("snapshot was removed")
	}
	if err := note(); err != nil {
		return err
	}
	return s.mountLocked(b)
}

// image returns the layer's image: from the cache, or built from the index.
func (s *Snapshotter) image(ctx context.Context, b *binding, saved *savedBinding) (*cache.File, error) {
	if saved.CacheID != "" {
		f, err := s.layers.File(saved.CacheID, &saved.Source)
		if err == nil {
			return s.layers.Sources.Add(f, &saved.Source), nil
		}
		s.log.Warn("image not in the cache, opening the layer again", "digest", saved.Source.Descriptor.Digest, "err", err)
	}
	f, tree, err := s.layers.Image(ctx, &saved.Source)
	if err != nil || f != nil {
		return f, err
	}
	below, err := s.below(ctx, saved.Parents)
	if err != nil {
		return nil, err
	}
	return s.layers.BuildOn(&saved.Source, tree, below)
}

// mountLocked mounts b.file on the binding's directory, directly if it is complete and checked, or what the layer was unpacked into.
func (s *Snapshotter) mountLocked(b *binding) error {
	if b.how != notMounted {
		return nil
	}
	if b.saved.Unpacked != nil {
		return s.mountUnpackedLocked(b)
	}
	if b.file.Verified(b.saved.Source.DiffID) && s.mountDirectLocked(b) == nil {
		return nil
	}
	way, reason := s.wayFor(b)
	if way == "" {
		return fmt.Errorf("this kernel cannot mount an incomplete image: %s", reason)
	}
	began := time.Now()
	err := s.exports.mount(way, b.number(), b.file, b.fsDir())
	s.layers.Tracer.Ended(began, layers.Span{Kind: "mount", Digest: b.saved.Source.Descriptor.Digest, What: string(way), Err: err})
	if err != nil {
		return err
	}
	s.log.Debug("layer mounted", "digest", b.saved.Source.Descriptor.Digest, "backend", way, "reason", reason)
	b.how, b.ways = mountedLazy, append(b.ways, way)
	return nil
}

// way returns the back end of the topmost lazy mount.
func (b *binding) way() blockdev.Backend {
	if len(b.ways) == 0 {
		return ""
	}
	return b.ways[len(b.ways)-1]
}

// mountDirectLocked mounts the complete image file on top of whatever is on the directory, so
// that there is no moment without the layer.
func (s *Snapshotter) mountDirectLocked(b *binding) error {
	if !b.file.PinIfComplete() {
		return errors.New("image is not complete")
	}
	err := s.exports.complete(b.file)
	if err == nil && b.how == mountedLazy && b.way() == blockdev.Precontent {
		// The image file itself is mounted already, and nothing of it is missing.
		b.how, b.pinned = mountedDirect, b.pinned+1
		return nil
	}
	if err == nil {
		err = s.kernel.MountImage(b.file.Path(), b.fsDir(), !s.caps.Direct)
	}
	if err != nil {
		b.file.Unpin()
		return err
	}
	b.how, b.pinned = mountedDirect, b.pinned+1
	return nil
}

// goDirect lets the kernel read a layer itself once that has become complete and its diffID is
// right. Containers that run keep what they have.
func (s *Snapshotter) goDirect(b *binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how != mountedLazy || b.removed || !b.file.Verified(b.saved.Source.DiffID) || !b.file.Complete() {
		return
	}
	if err := s.mountDirectLocked(b); err != nil {
		s.log.Warn("complete layer stays behind its export", "digest", b.saved.Source.Descriptor.Digest, "err", err)
	}
}

// unmount takes a binding's layer off its directory.
func (s *Snapshotter) unmount(b *binding) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return s.unmountLocked(b)
}

func (s *Snapshotter) unmountLocked(b *binding) error {
	err := errors.Join(s.dropGateLocked(b), s.kernel.Unmount(b.fsDir()))
	for ; b.pinned > 0; b.pinned-- {
		b.file.Unpin()
	}
	for _, way := range b.ways {
		s.exports.release(way, b.number())
	}
	b.how, b.ways, b.attempt = notMounted, nil, nil
	return err
}
