package snapshotter

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/golang/groupcache/lru"
)

// answers are the snapshots by which claims were answered. containerd looks for the snapshot of a claim by chainID and
// parent, and takes the first that it finds: without them a namespace could be given what another one's image claims.
type answers struct {
	mu    sync.Mutex // guards names
	names lru.Cache  // answer to the snapshot's name
}

type answer struct{ namespace, chainID, parent string }

const maxAnswers = 4096 // containerd asks within the same call

func (a *answers) note(ctx context.Context, chainID, parent, name string) {
	namespace, _ := namespaces.Namespace(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names.MaxEntries = maxAnswers
	a.names.Add(answer{namespace, chainID, parent}, name)
}

// hides reports whether a snapshot answers the same claim as another one that a namespace was given.
func (a *answers) hides(namespace string, info *snapshots.Info) bool {
	chainID := info.Labels[snapshots.LabelSnapshotRef]
	if chainID == "" || info.Kind != snapshots.KindCommitted {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	name, ok := a.names.Get(answer{namespace, chainID, info.Parent})
	return ok && name != info.Name
}
