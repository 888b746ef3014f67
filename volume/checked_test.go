package volume

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// A testStore is a store in memory without faults. When its test has ended Check walks over every volume in it, and the
// test fails for each problem, and for each object that belongs to none.
type testStore struct {
	*simstore.Store
	damage map[string]string // what Check must say of a volume, by its name
}

func newTestStore(t *testing.T) *testStore {
	s := &testStore{simstore.New(rand.New(rand.NewPCG(1, 1))), map[string]string{}}
	t.Cleanup(func() { s.walk(t) })
	return s
}

// damaged says that a volume was damaged on purpose, and what Check must report of it, in a part of its message.
func (s *testStore) damaged(name, report string) { s.damage[name] = report }

func (s *testStore) walk(t *testing.T) {
	ctx, held := context.Background(), s.Snapshot()
	var keys []string
	if err := held.List(ctx, "", func(o store.Object) bool {
		keys = append(keys, o.Key)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	prefixes := []string{storeKey, nameKey(""), "node/", "audit/"}
	for _, key := range keys {
		name, ok := strings.CutPrefix(key, nameKey(""))
		if !ok {
			continue
		}
		id, err := lookupID(ctx, held, name)
		if err != nil {
			t.Errorf("at the end: %s: %v", name, err)
			continue
		}
		prefixes = append(prefixes, volumePrefix(id))
		var found []string
		r, err := Check(ctx, held, name, true, func(string) {})
		if err != nil {
			found = []string{err.Error()}
		} else {
			found = r.Problems
		}
		want, damaged := s.damage[name]
		delete(s.damage, name)
		switch {
		case damaged && !slices.ContainsFunc(found, func(p string) bool { return strings.Contains(p, want) }):
			t.Errorf("at the end: %s was damaged, and check says %q, nothing of %q", name, found, want)
		case !damaged && len(found) > 0:
			t.Errorf("at the end: check of %s: %q", name, found)
		}
	}
	for name := range s.damage {
		t.Errorf("at the end: %s was damaged, and is not there", name)
	}
	for _, key := range keys {
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			t.Errorf("at the end: %s belongs to no volume", key)
		}
	}
}

// newSimNode returns a machine whose disks are as quick as memory. When its test has ended every journal that is left on it
// can be replayed.
func newSimNode(t *testing.T) *simNode {
	n := &simNode{id: NewID(), journals: map[ID]*simDisk{}, rnd: rand.New(rand.NewPCG(2, 2))}
	t.Cleanup(func() { n.walk(t) })
	return n
}

// walk replays every journal as after a power cut.
func (n *simNode) walk(t *testing.T) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, d := range n.journals {
		_, err := replay(d, d.vid, id, nil, false, func(uint64, []entry, cursor) {})
		switch {
		case n.damaged == "" && err != nil:
			t.Errorf("at the end: journal %s: %v", id, err)
		case n.damaged != "" && (err == nil || !strings.Contains(err.Error(), n.damaged)):
			t.Errorf("at the end: journal %s was damaged, and replay says %v, nothing of %q", id, err, n.damaged)
		}
	}
}

// openVolume attaches a volume to a machine, in a new life of its daemon.
func openVolume(t *testing.T, st store.Store, at *simNode, id ID, opts Options) (*Volume, error) {
	t.Helper()
	if opts.Store == nil {
		opts.Store = st
	}
	node := at.member(st)
	return Attach(t.Context(), id, node, at, AttachOptions{Options: opts})
}

// newOpened makes the volume v, and opens it on a node of its own.
func newOpened(t *testing.T, st store.Store, spec Spec, opts Options) (*Head, *simNode, *Volume) {
	t.Helper()
	h, _, err := Create(t.Context(), st, "v", spec)
	if err != nil {
		t.Fatal(err)
	}
	at := newSimNode(t)
	v, err := openVolume(t, st, at, h.ID, opts)
	if err != nil {
		t.Fatal(err)
	}
	return h, at, v
}
