package snapshotter

import (
	"context"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// Status is what the snapshotter does now.
type Status struct {
	Capabilities Capabilities
	Layers       []LayerStatus
	Broken       []BrokenSnapshot
	Waiting      []WaitingReader
}

// LayerStatus describes one snapshot of a remote layer. Sizes are in bytes.
type LayerStatus struct {
	Snapshot string
	Image    string
	Digest   digest.Digest
	Format   string
	Backend  string // "" while it is not mounted
	State    string // opening, mounted, failed, quarantined
	Reason   string // for the last two, and for mounted ones of which something is nowhere any more
	Verified bool   // diffID checked
	cache.Stats
}

// A BrokenSnapshot is an active snapshot whose processes may get EIO.
type BrokenSnapshot struct {
	ID, Mounted, Reason string
	Container           string // namespace/name as containerd has them, "" if unknown
}

// A WaitingReader is a process that has waited for missing data for a while.
type WaitingReader struct {
	PID       int
	Command   string
	Container string // the end of its control group's path, which names it; "" if unknown
	Image     string
	Digest    digest.Digest
	Since     time.Time
	Reason    string // why the registry does not answer, "" if it is only slow
}

// Status returns the state of every remote layer.
func (s *Snapshotter) Status() Status {
	st := Status{Capabilities: s.caps, Broken: s.stillBroken(), Waiting: s.waiting()}
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
		Format: s.layers.FormatOf(&b.saved.Source, b.file), State: "opening",
	}
	if u := b.saved.Unpacked; u != nil { // and its diffID was checked
		l.Verified, l.Data, l.Present, l.Disk = true, u.Bytes, u.Bytes, u.Bytes
	}
	if b.file != nil {
		l.Stats = b.file.Stats()
		l.Verified = b.file.Verified(b.saved.Source.DiffID)
	}
	switch b.how {
	case mountedLazy:
		l.State, l.Backend = "mounted", string(b.way())
	case mountedDirect, mountedUnpacked:
		l.State, l.Backend = "mounted", string(b.how)
	}
	if err := b.failedLocked(); err != nil {
		l.State, l.Reason = "failed", err.Error()
	}
	if b.gone != nil {
		l.Reason = b.gone.describe(l.Reason)
	}
	if b.saved.Quarantined != "" {
		l.State, l.Reason = "quarantined", b.saved.Quarantined
	}
	return l
}

const longWait = time.Second

// waiting returns the processes whose reads wait for long.
func (s *Snapshotter) waiting() []WaitingReader {
	images := map[string]layers.Source{}
	for _, b := range s.allBindings() {
		images[b.cacheID()] = b.source()
	}
	var all []WaitingReader
	for _, w := range s.cache.Waiting(longWait) {
		r := WaitingReader{PID: w.PID, Since: w.Since, Image: images[w.ID].Image, Digest: images[w.ID].Descriptor.Digest}
		r.Command, r.Container = processOf(w.PID)
		if w.Trouble != nil {
			r.Reason = w.Trouble.Error()
		}
		all = append(all, r)
	}
	return all
}

// processOf returns a process's command and the last part of its control group's path, which
// container runtimes name after the container.
func processOf(pid int) (command, container string) {
	if pid <= 0 {
		return "", ""
	}
	dir := "/proc/" + strconv.Itoa(pid)
	p, _ := os.ReadFile(dir + "/comm") // "" if it has ended
	command = strings.TrimSpace(string(p))
	p, _ = os.ReadFile(dir + "/cgroup")
	for line := range strings.Lines(string(p)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && len(path.Base(f[2])) > len(container) {
			container = strings.Trim(path.Base(f[2]), "/")
		}
	}
	return command, container
}

// Progress is how far the import of a layer is, in packed bytes.
type Progress struct {
	Digest      digest.Digest
	Came, Total int64
}

const progressEvery = 200 * time.Millisecond

// Resolve opens every layer of a manifest that is read here and returns when all are open or have
// failed, with the reasons of those that containerd is to unpack. Meanwhile it tells of the layers that are
// imported.
func (s *Snapshotter) Resolve(ctx context.Context, manifest digest.Digest, ref string,
	tell func([]Progress)) (reasons map[digest.Digest]string, err error) {
	img, err := s.images.Manifest(ctx, manifest, ref)
	if err != nil {
		return nil, err
	}
	s.layers.Indexes.Expect(img)
	s.starts.Begin(img)
	reasons = map[digest.Digest]string{}
	var all []*layers.Opening
	bound := s.boundKeys()
	for i := range img.Layers {
		if bound[s.layers.KeyOf(&img.Layers[i])] {
			continue
		}
		if err := s.layers.Refuses(&img.Layers[i]); err != nil {
			reasons[img.Layers[i].Descriptor.Digest] = err.Error()
			continue
		}
		all = append(all, s.layers.OpenAgain(img.Layers[i]))
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for i := 0; i < len(all); {
		o := all[i]
		select {
		case <-o.Done():
			if err := o.Err(); err != nil {
				reasons[o.Source().Descriptor.Digest] = err.Error()
			}
			i++
		case <-tick.C:
			tell(progressOf(all))
		case <-ctx.Done():
			return reasons, context.Cause(ctx)
		}
	}
	return reasons, nil
}

func progressOf(all []*layers.Opening) (p []Progress) {
	for _, o := range all {
		if n := o.Came(); n > 0 {
			desc := o.Source().Descriptor
			p = append(p, Progress{desc.Digest, n, desc.Size})
		}
	}
	return p
}

// Layers returns the images of a manifest's layers that are in the cache, with their sources.
// Layers that are not supplied here are left out.
func (s *Snapshotter) Layers(ctx context.Context, manifest digest.Digest, ref string) (map[digest.Digest]*cache.File, layers.Image, error) {
	img, err := s.images.Manifest(ctx, manifest, ref)
	if err != nil {
		return nil, layers.Image{}, err
	}
	files := map[digest.Digest]*cache.File{}
	for _, b := range s.allBindings() {
		src := b.source()
		if slices.ContainsFunc(img.Layers, func(l layers.Source) bool { return l.Descriptor.Digest == src.Descriptor.Digest }) {
			if err := s.ensure(ctx, b); err != nil {
				return nil, img, err
			}
			if f := b.image(); f != nil { // else it was unpacked
				files[src.Descriptor.Digest] = f
			}
		}
	}
	return files, img, nil
}

// CredentialsChanged has registries asked again that would not let us in.
func (s *Snapshotter) CredentialsChanged() { s.layers.Proofs.Forgive() }
