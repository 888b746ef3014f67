package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"path"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
)

// containerd keeps for each snapshot the name that it has with us, and tells nobody: its clients name a layer's snapshot by chainID. But
// while it lists its snapshots it asks us for each by our name, and passes on the labels that we answer. So we have it list them, and
// answer with the name.

// Metadata is what containerd has noted of its snapshots.
type Metadata interface {
	// Namespaces returns containerd's namespaces.
	Namespaces(ctx context.Context) ([]string, error)
	// Walk has containerd list the snapshots that it has with us in the namespace of the context.
	Walk(ctx context.Context, fn snapshots.WalkFunc) error
}

// These are, in answers to a question alone, our name of a snapshot, and whether it was lost here.
const (
	nameLabel = "containerd.io/snapshot/remora.name"
	lostLabel = "containerd.io/snapshot/remora.lost"
)

// A known snapshot of a layer is what containerd says of it.
type known struct {
	chainID digest.Digest
	parent  string // our name; "" for none
}

// asking asks containerd which snapshots of layers it has with us.
type asking struct {
	metadata Metadata // nil for nobody to ask

	mu    sync.Mutex                  // guards the fields below
	open  map[string]int              // questions that are under way, by namespace
	known map[string]map[string]known // what the last question found, by namespace and our name
}

// isOpen reports whether containerd may be asking us in the course of a question.
func (a *asking) isOpen(ctx context.Context) bool {
	namespace, _ := namespaces.Namespace(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open[namespace] > 0
}

func (a *asking) begin(namespace string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[namespace] += n; a.open[namespace] == 0 {
		delete(a.open, namespace)
	}
}

// ask returns the snapshots of layers that containerd has in the namespace of the context, by our names, and containerd's keys of
// others that were lost here.
func (a *asking) ask(ctx context.Context) (found map[string]known, others []string, err error) {
	if ctx, err = forward(ctx); err != nil {
		return nil, nil, err
	}
	namespace, _ := namespaces.Namespace(ctx)
	type entry struct {
		name, parent string
		lost         bool
	}
	all := map[string]entry{} // by containerd's keys
	a.begin(namespace, 1)
	err = a.metadata.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if name := info.Labels[nameLabel]; name != "" {
			all[info.Name] = entry{name, info.Parent, info.Labels[lostLabel] != ""}
		}
		return nil
	})
	a.begin(namespace, -1)
	if err != nil {
		return nil, nil, fmt.Errorf("which snapshots containerd has in namespace %s: %w", namespace, err)
	}
	found = map[string]known{}
	for key, e := range all {
		below, isKnown := all[e.parent]
		if id, err := digest.Parse(key); err == nil && mayBeLayer(e.name) && (isKnown || e.parent == "") {
			found[e.name] = known{id, below.name}
		} else if e.lost {
			others = append(others, key)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known[namespace] = found
	return found, others, nil
}

// of returns what containerd says of the namespace of the context. That is old where it has the snapshot: what containerd says of one,
// and of those below it, never changes.
func (a *asking) of(ctx context.Context, name string) (map[string]known, error) {
	namespace, _ := namespaces.Namespace(ctx)
	a.mu.Lock()
	found := a.known[namespace]
	a.mu.Unlock()
	if _, ok := found[name]; ok {
		return found, nil
	}
	found, _, err := a.ask(ctx)
	return found, err
}

// mayBeLayer reports whether a name may be that of a layer's snapshot: one of ours, or one that containerd has given to a layer that it
// unpacked.
func mayBeLayer(name string) bool {
	return isRemoteName(name) || isUnpackedName(name)
}

// isUnpackedName reports whether containerd gave a name to a layer that it unpacked: its namespace, a number, and the chainID.
func isUnpackedName(name string) bool {
	_, err := digest.Parse(path.Base(name))
	return err == nil && path.Base(name) != name
}

// answered is what Stat answers while a question is under way: the name, too. Of a snapshot that was lost containerd hears what one of a
// layer is to be once it is made anew.
func answered(name string, info snapshots.Info, lost bool) snapshots.Info {
	if lost {
		info = snapshots.Info{Kind: snapshots.KindCommitted, Name: name}
	}
	info.Labels = maps.Clone(info.Labels)
	if info.Labels == nil {
		info.Labels = map[string]string{}
	}
	info.Labels[nameLabel] = name
	if lost {
		info.Labels[lostLabel] = "true"
	}
	return info
}
