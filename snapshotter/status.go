package snapshotter

import (
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// reports say how layers are.
type reports struct {
	*base
	bindings *bindings
	breakage *breakage
	losses   *losses
}

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
	State    string // idle, opening, mounted, failed, quarantined
	Reason   string // for the last two, and for mounted ones of which something is nowhere any more
	Verified bool   // diffID checked
	cache.Stats
}

// A BrokenSnapshot is an active snapshot whose processes may get EIO, or one that was lost.
type BrokenSnapshot struct {
	ID        string // of one that was lost, its namespace and containerd's key
	Mounted   string // "" for one that was lost
	Reason    string
	Container string // namespace/name as containerd has them, "" if unknown
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
func (x *reports) Status() Status {
	st := Status{Capabilities: x.caps, Broken: append(x.breakage.still(), x.losses.broken()...), Waiting: x.waiting()}
	for _, b := range x.bindings.all() {
		st.Layers = append(st.Layers, x.layerStatus(b))
	}
	return st
}

func (x *reports) layerStatus(b *binding) LayerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := LayerStatus{
		Snapshot: b.saved.Name, Image: b.saved.Source.Image, Digest: b.saved.Source.Descriptor.Digest,
		Format: x.layers.FormatOf(&b.saved.Source, b.file), State: "idle",
	}
	if b.attempt != nil {
		l.State = "opening"
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
	if b.doubt != nil {
		l.Reason = doubtWhy + ": it is read whole, and shown once nothing uses what is shown now"
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
func (x *reports) waiting() []WaitingReader {
	images := map[string]layers.Source{}
	for _, b := range x.bindings.all() {
		images[b.cacheID()] = b.source()
	}
	var all []WaitingReader
	for _, w := range x.cache.Waiting(longWait) {
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

// CredentialsChanged has registries asked again that would not let us in.
func (s *Snapshotter) CredentialsChanged() { s.layers.Proofs.Forgive() }
