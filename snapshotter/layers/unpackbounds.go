package layers

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/continuity/fs"

	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/memory"
)

// What unpacking keeps of an entry until the end of the layer, in bytes of memory besides its names: its path, and of a directory its
// header.
const (
	unpackedEntry  = 192
	unpackedDir    = 768
	unpackedRecord = 64 // of a header that a directory has
	unpackedStep   = 4 << 20
)

// beyondImages is how many times as many files, and bytes of paths, an unpacked layer may have as one that an image is made of.
const beyondImages = 2

// An unpackTally bounds what unpacking a layer makes, of memory and on disk: each entry is counted before anything is made of it.
type unpackTally struct {
	ctx   context.Context // of UnpackInto: the tally is one operation
	root  string
	share *memory.Share

	nodes, paths, plain, bytes int64 // that are left
	limits                     layout.Limits
	asked                      int64 // of share
	parent                     string
}

func newUnpackTally(ctx context.Context, root string, limits layout.Limits, share *memory.Share) *unpackTally {
	limits = limits.WithDefaults()
	return &unpackTally{ctx: ctx, root: root, share: share, limits: limits, nodes: beyondImages * int64(limits.Nodes),
		paths: beyondImages * limits.Paths, plain: limits.Plain}
}

// entry counts an entry. It is an archive.Filter that lets all pass.
func (t *unpackTally) entry(h *tar.Header) (bool, error) {
	dirs, err := t.unlisted(filepath.Dir(h.Name))
	if err != nil {
		return false, err
	}
	if t.nodes -= 1 + dirs; t.nodes < 0 {
		return false, fmt.Errorf("%w: unpacked, it has more than %d files and directories (%d times [limits] nodes)",
			layout.ErrBeyond, beyondImages*int64(t.limits.Nodes), beyondImages)
	}
	names := int64(len(h.Name) + len(h.Linkname))
	if t.paths -= names; t.paths < 0 {
		return false, fmt.Errorf("%w: the paths of its entries have more than %d bytes", layout.ErrBeyond, beyondImages*t.limits.Paths)
	}
	// A sparse file is written with its zeros, of which the archive has none.
	if t.plain -= max(h.Size, 0); t.plain < 0 {
		return false, fmt.Errorf("%w (%d bytes)", scan.ErrBomb, t.limits.Plain)
	}
	takes := unpackedEntry + int64(len(t.root)) + names
	if h.Typeflag == tar.TypeDir {
		takes += unpackedDir + names
		for key, value := range h.PAXRecords {
			takes += unpackedRecord + int64(len(key)+len(value))
		}
	}
	return true, t.take(takes)
}

// take asks for bytes of memory, by steps.
func (t *unpackTally) take(n int64) error {
	if t.bytes += n; t.bytes <= t.asked {
		return nil
	}
	more := max(unpackedStep, t.bytes-t.asked)
	if err := t.share.Grow(t.ctx, more); err != nil {
		return fmt.Errorf("unpack layer: %w", err)
	}
	t.asked += more
	return nil
}

// unlisted returns how many directories will be made for an entry in a directory of the archive, which may lead through symbolic
// links.
func (t *unpackTally) unlisted(dir string) (n int64, err error) {
	if dir == t.parent { // made for the entry before
		return 0, nil
	}
	path, err := fs.RootPath(t.root, dir)
	if err != nil {
		return 0, fmt.Errorf("find the directory of an entry: %w", err)
	}
	for ; len(path) > len(t.root); path = filepath.Dir(path) {
		if _, err := os.Lstat(path); err == nil {
			break
		}
		n++
	}
	t.parent = dir
	return n, nil
}

// Of layers that were beyond what may be unpacked, unpackRefusedKept are known for a while: to find out costs as much again.
const (
	unpackRefusedKept  = 1024
	unpackRefusedHolds = 10 * time.Minute
)

type refusedLayer struct {
	until time.Time
	err   error
}

// unpackable returns why a layer cannot be unpacked, if that was found out lately.
func (i *Imports) unpackable(s *Source) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	known, ok := i.refused.Get(granted{s.Repo, s.BlobName()})
	if ok && time.Now().Before(known.(refusedLayer).until) {
		return known.(refusedLayer).err
	}
	return nil
}

// Beyond returns why a layer can be shown in no way within [limits], if that was found out lately; else nil.
func (i *Imports) Beyond(s *Source) error { return i.unpackable(s) }

// noteBeyond remembers that a layer cannot be unpacked, and is to be claimed no more.
func (i *Imports) noteBeyond(s *Source, err error) {
	i.refusals.note(s, err)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.refused.Add(granted{s.Repo, s.BlobName()}, refusedLayer{time.Now().Add(unpackRefusedHolds), err})
}
