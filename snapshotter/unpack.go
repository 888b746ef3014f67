package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/continuity/fs"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// Of some layers it is known only at their end that no image of ours can show them, though containerd unpacks them: the names, owners
// or devices of their entries, or their size. If such a layer was claimed before, nobody else downloads it any more. So it is unpacked
// here, by containerd's own package, into a directory beside the snapshot's, which is mounted in the place of an image.

const unpackedDir = "unpacked"

// unpackedUsage is what a directory takes on disk.
type unpackedUsage struct {
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
}

func (b *binding) isUnpacked() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved.Unpacked != nil
}

// unpackInto unpacks a layer beside a binding's directory, and returns what it takes there.
func (m *mountings) unpackInto(ctx context.Context, b *binding, src *layers.Source, refused error) (*unpackedUsage, error) {
	b.mu.Lock()
	parents, lost := b.saved.Parents, b.saved.Quarantined != ""
	b.mu.Unlock()
	lowers, err := m.mounted(ctx, parents)
	if err != nil {
		return nil, err
	}
	m.log.Warn("layer is unpacked, since no image can be made of it", "key", b.name(), "digest", src.Descriptor.Digest,
		"image", src.Image, "err", refused)
	dir := filepath.Join(b.dir, unpackedDir)
	if lost { // what is there may be in use, though nobody knows any more what it was
		if err := durable.Rename(dir, dir+"-before-"+uniqueSuffix()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if err := m.layers.Imports.UnpackInto(ctx, src, dir, lowers); err != nil {
		// Whether the layer is gone is what unpacking it says, rather than why no image was made of it.
		return nil, errors.Join(fmt.Errorf("unpack it, since it was refused (%v): %w", refused, err), os.RemoveAll(dir))
	}
	takes, err := fs.DiskUsage(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &unpackedUsage{takes.Size, takes.Inodes}, nil
}

func (m *mountings) mountUnpackedLocked(b *binding) error {
	if err := m.kernel.Bind(filepath.Join(b.dir, unpackedDir), b.fsDir()); err != nil {
		return fmt.Errorf("show what was unpacked: %w", err)
	}
	b.how = mountedUnpacked
	return nil
}
