package start

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A Recorder is the device of an image that notes what is read of it.
type Recorder struct {
	*cache.File

	mu   sync.Mutex // guards the fields below
	seen map[int64]bool
	uses []cache.Use
}

// NewRecorder returns a Recorder of an image of which nothing was read yet.
func NewRecorder(f *cache.File) *Recorder { return &Recorder{File: f, seen: map[int64]bool{}} }

// Exact implements fusefile.Exact: what is read ahead of a program is not what the program reads.
func (r *Recorder) Exact() {}

// ReadAt implements blockdev.Device.
func (r *Recorder) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	now := time.Now()
	r.Extents(off, int64(len(p)), func(e cache.Extent) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.seen[e.Off] {
			r.seen[e.Off] = true
			r.uses = append(r.uses, cache.Use{Extent: e, At: now})
		}
		return true
	})
	return r.File.ReadAt(ctx, p, off)
}

// ProfileOf returns what was read so far of an image's layers.
func ProfileOf(img *layers.Image, all []*Recorder) (*profile.Profile, error) {
	used := map[*cache.File][]cache.Use{}
	for _, r := range all {
		r.mu.Lock()
		used[r.File] = slices.Clone(r.uses)
		r.mu.Unlock()
	}
	entries, err := entriesOf(used)
	if err != nil {
		return nil, err
	}
	return profile.New(img.Target.Digest, img.Repo.String(), entries), nil
}
