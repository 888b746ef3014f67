package snapshotter

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
)

// Status is what the snapshotter does now.
type Status struct {
	Capabilities blockdev.Capabilities
	Layers       []LayerStatus
	Broken       []BrokenSnapshot
}

// LayerStatus describes one snapshot of a remote layer. Sizes are in bytes.
type LayerStatus struct {
	Snapshot string
	Image    string
	Digest   digest.Digest
	Format   string
	Backend  string // "" while it is not mounted
	State    string // opening, mounted, failed, quarantined
	Reason   string // for the last two
	Verified bool   // diffID checked
	cache.Stats
}

// A BrokenSnapshot is an active snapshot whose processes may get EIO.
type BrokenSnapshot struct {
	ID, Mounted, Reason string
}

// Status returns the state of every remote layer.
func (s *Snapshotter) Status() Status {
	st := Status{Capabilities: s.caps, Broken: s.stillBroken()}
	for _, b := range s.allBindings() {
		st.Layers = append(st.Layers, s.layerStatus(b))
	}
	return st
}

func (s *Snapshotter) layerStatus(b *binding) LayerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := LayerStatus{
		Snapshot: b.saved.Name, Image: b.saved.Source.Image, Digest: b.saved.Source.Descriptor.Digest,
		Format: "estargz", State: "opening",
	}
	if b.file != nil {
		l.Stats = b.file.Stats()
		l.Verified = b.file.Verified()
	}
	switch b.how {
	case mountedLazy:
		l.State, l.Backend = "mounted", string(s.caps.Lazy)
	case mountedDirect:
		l.State, l.Backend = "mounted", "direct"
	}
	if b.how == notMounted && b.attempt != nil {
		select {
		case <-b.attempt.done:
			if b.attempt.err != nil {
				l.State, l.Reason = "failed", b.attempt.err.Error()
			}
		default:
		}
	}
	if b.saved.Quarantined != "" {
		l.State, l.Reason = "quarantined", b.saved.Quarantined
	}
	return l
}

// stillBroken returns the broken snapshots that are still mounted.
func (s *Snapshotter) stillBroken() []BrokenSnapshot {
	mounts, err := readMounts()
	if err != nil {
		s.log.Warn("mounts not read", "err", err)
	}
	mounted := map[string]string{}
	for _, m := range mounts {
		if id, ok := s.activeOf(m); ok {
			mounted[id] = m.dir
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []BrokenSnapshot
	for id, why := range s.broken {
		if dir, ok := mounted[id]; ok {
			all = append(all, BrokenSnapshot{ID: id, Mounted: dir, Reason: why})
		} else {
			delete(s.broken, id) // its container has ended
		}
	}
	slices.SortFunc(all, func(a, b BrokenSnapshot) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return all
}

// Resolve opens every layer of a manifest that may be lazy and returns when all are open or have
// failed, with the reasons of those that cannot be lazy.
func (s *Snapshotter) Resolve(ctx context.Context, manifest digest.Digest, ref string) (reasons map[digest.Digest]string, err error) {
	img, err := s.images.Manifest(ctx, manifest, ref)
	if err != nil {
		return nil, err
	}
	reasons = map[digest.Digest]string{}
	var all []*opening
	bound := s.boundDigests()
	for i := range img.Layers {
		if bound[img.Layers[i].Descriptor.Digest] {
			continue
		}
		if _, _, err := s.opts.Trust.indexOf(&img.Layers[i]); err != nil {
			reasons[img.Layers[i].Descriptor.Digest] = err.Error()
			continue
		}
		all = append(all, s.layers.open(img.Layers[i], tryAgain))
	}
	for _, o := range all {
		select {
		case <-o.done:
			if o.err != nil {
				reasons[o.src.Descriptor.Digest] = o.err.Error()
			}
		case <-ctx.Done():
			return reasons, context.Cause(ctx)
		}
	}
	return reasons, nil
}

// Layers returns the images of a manifest's layers that are in the cache, with their sources.
// Layers that are not supplied here are left out.
func (s *Snapshotter) Layers(ctx context.Context, manifest digest.Digest, ref string) (map[digest.Digest]*cache.File, Image, error) {
	img, err := s.images.Manifest(ctx, manifest, ref)
	if err != nil {
		return nil, Image{}, err
	}
	files := map[digest.Digest]*cache.File{}
	for _, b := range s.allBindings() {
		src := b.source()
		if slices.ContainsFunc(img.Layers, func(l Source) bool { return l.Descriptor.Digest == src.Descriptor.Digest }) {
			if err := s.ensure(ctx, b); err != nil {
				return nil, img, err
			}
			b.mu.Lock()
			files[src.Descriptor.Digest] = b.file
			b.mu.Unlock()
		}
	}
	return files, img, nil
}
