package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

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
	gone    *gone // nil unless it is nowhere any more
	// missed is what was told of as nowhere any more, until its being back is told; nil for nothing. An outage between changes nothing.
	missed *layers.Source
	wrong  *wrongAnew // nil unless it was filled anew in vain
	doubt  *doubt     // nil unless its table lies
	// rivals are by which others were seen to claim its chainID before it was proven, by their namespaces.
	rivals map[string][]layers.Source
	gated  bool // there is a gate
	shown  bool // the layer is shown at it, or an attempt at that has failed
	// deciding is held by whoever decides which of its rivals' layers is shown; nil until somebody does.
	deciding chan struct{}
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
	// Unasked says that the snapshot was made anew since it was lost, and that nobody has asked for its layer since.
	Unasked bool `json:"unasked,omitempty"`
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

// loadBinding reads what lies beside a snapshot of a name. remote is false for an ordinary snapshot, which has nothing there, and
// another name or a directory that somebody could write to. A record that is damaged or gone is not taken for none: the snapshot is
// quarantined, since without its layer it would show an empty directory.
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
	case found == durable.Absent && !isRemoteName(name) && !(isUnpackedName(name) && neverWritten(dir)):
		return saved, false
	case found == durable.Absent:
		why = path + " is missing"
		if err := durable.Miss(path, bindingKind, log, "the snapshot is of a remote layer"); err != nil {
			log.Error("a snapshot's record is missing", "key", name, "err", err)
		}
	default:
		return saved, true
	}
	return savedBinding{Version: bindingVersion, Name: name, Quarantined: why}, true
}

// neverWritten reports whether nobody could write to a snapshot's directory, as nobody could to one of a layer that is supplied here.
func neverWritten(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "work"))
	return errors.Is(err, fs.ErrNotExist)
}

// check says whether a record can be the one that was saved of a snapshot.
func (s *savedBinding) check(name string) error {
	if err := durable.CheckVersion(s.Version, bindingVersion); err != nil {
		return err
	}
	switch {
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

// way returns the back end of the topmost lazy mount.
func (b *binding) way() blockdev.Backend {
	if len(b.ways) == 0 {
		return ""
	}
	return b.ways[len(b.ways)-1]
}
