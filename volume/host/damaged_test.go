package host_test

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

const harmSeed = 20261129

// harms are those of JSON files, and values that a record cannot have.
func harms(more map[string]string) []suite.Harm {
	all := suite.Harms(harmSeed)
	for name, content := range more {
		all = append(all, suite.Harm{Name: name, Do: func(t testing.TB, path string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}})
	}
	return append(all, suite.Harm{Name: "removed", Do: suite.Lose})
}

// reopen opens a root after a file of it was harmed, and returns what the log says. The file must lie aside.
func reopen(t *testing.T, root, file string, st store.Store, h suite.Harm) *host.Host {
	t.Helper()
	path := filepath.Join(root, file)
	h.Do(t, path)
	var said bytes.Buffer
	again, err := host.Open(host.Options{
		Root: root, Journal: 16 << 20, OpenStore: func(string) (store.Store, error) { return st, nil },
		TTL: 4 * time.Second, Log: slog.New(slog.NewTextHandler(&said, nil)),
	})
	if err != nil {
		t.Fatalf("seed %d: %v", harmSeed, err)
	}
	all, err := durable.ListDamaged(root, host.RecordFile, host.NodeFile)
	if err != nil || len(all) != 1 || all[0].File != path || all[0].Kind.Lost == "" || all[0].Kind.Do == "" {
		t.Errorf("set aside: %+v, %v", all, err)
	}
	if !strings.Contains(said.String(), path) {
		t.Errorf("the log says %s", said.String())
	}
	return again
}

// mend returns what undoes a harm, and what was made of it.
func mend(t *testing.T, root, file string) func() {
	t.Helper()
	path := filepath.Join(root, file)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		aside, err := durable.ListDamaged(root, host.RecordFile, host.NodeFile)
		for _, d := range aside {
			err = errors.Join(err, os.RemoveAll(d.Aside))
		}
		if err := errors.Join(err, os.WriteFile(path, whole, 0o600)); err != nil {
			t.Error(err)
		}
	}
}

// written returns a root whose volume has a block that is in the journal alone, and that block.
func written(t *testing.T, class volume.Class) (root string, st store.Store, head *volume.Head, node volume.ID, block []byte) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "volumes")
	s, head := newStore(t)
	if class != "" {
		var err error
		if head, _, err = volume.Create(t.Context(), s, "other", volume.Spec{Size: size, Class: class}); err != nil {
			t.Fatal(err)
		}
	}
	h, err := host.Open(host.Options{
		Root: root, Journal: 16 << 20, OpenStore: func(string) (store.Store, error) { return s, nil }, TTL: 4 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := attach(t, h, head)
	block = make([]byte, volume.Block)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	if err := d.WriteAt(t.Context(), block, 4*volume.Block); err != nil {
		t.Fatal(err)
	}
	node = h.NodeID()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	return root, s, head, node, block
}

// TestDamagedVolumes: without the record, the node starts, says of the volume's device that it cannot serve it, takes nothing
// for free, and has every acknowledged write again once the volume is attached.
func TestDamagedVolumes(t *testing.T) {
	root, st, head, node, block := written(t, volume.Local)
	for _, h := range harms(map[string]string{
		"no version": `{}`, "a version below zero": `{"version": -1}`, "volumes that are none": `{"version": 1, "attached": [{}]}`,
		"a size below zero": `{"version": 1, "attached": [{"id": "` + volume.NewID().String() + `", "store": "sim:", "size": -1}]}`,
		"no object":         `{"version": 1, "names": [], "attached": {}}`,
	}) {
		t.Run(h.Name, func(t *testing.T) {
			defer mend(t, root, "volumes.json")()
			again := reopen(t, root, "volumes.json", st, h)
			defer func() {
				if err := again.Close(); err != nil {
					t.Error(err)
				}
			}()
			if again.NodeID() != node || len(again.Attached()) != 0 {
				t.Errorf("node %s, was %s; attached %v", again.NodeID(), node, again.Attached())
			}
			if _, err := again.Resume(head.ID, true); !errors.Is(err, host.ErrNotAttached) || !strings.Contains(err.Error(), "volumes.json") {
				t.Errorf("resumed: %v", err)
			}
			if known := again.StoresOf("other"); len(known) != 0 {
				t.Errorf("its stores: %q", known)
			}
			mustHold(t, attach(t, again, head), 4*volume.Block, block)
		})
	}
}

// TestDamagedNode: who the node is stands in the record of volumes, too: it goes on with its volumes as before.
func TestDamagedNode(t *testing.T) {
	root, st, head, node, block := written(t, volume.Local)
	for _, h := range harms(map[string]string{
		"nobody": `{}`, "zeros for an id": `{"node": "00000000000000000000000000000000", "machine": ""}`, "a short id": `{"node": "12"}`,
	}) {
		t.Run(h.Name, func(t *testing.T) {
			defer mend(t, root, "node.json")()
			again := reopen(t, root, "node.json", st, h)
			if again.NodeID() != node {
				t.Errorf("it is node %s, and was %s", again.NodeID(), node)
			}
			d, err := again.Resume(head.ID, true)
			if err != nil {
				t.Fatal(err)
			}
			mustHold(t, d, 4*volume.Block, block)
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDamagedNodeOfOldRecord: where the record does not say who the node was, it is another node: it is
// refused the volume's acknowledged writes rather than to go on without them, and the journal stays.
func TestDamagedNodeOfOldRecord(t *testing.T) {
	for name, change := range map[string][2]string{
		"no node": {`"node": {`, `"was": {`},
	} {
		t.Run(name, func(t *testing.T) {
			root, st, head, node, _ := written(t, volume.Local)
			path := filepath.Join(root, "volumes.json")
			p, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(p, []byte(change[0])) {
				t.Fatalf("record: %s, %v", p, err)
			}
			if err := os.WriteFile(path, bytes.Replace(p, []byte(change[0]), []byte(change[1]), 1), 0o600); err != nil {
				t.Fatal(err)
			}
			again := reopen(t, root, "node.json", st, suite.Harms(harmSeed)[0])
			if again.NodeID() == node || again.NodeID() == (volume.ID{}) {
				t.Errorf("it is node %s, and was %s", again.NodeID(), node)
			}
			d, err := again.Resume(head.ID, true)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.ReadAt(t.Context(), make([]byte, volume.Block), 0); !errors.Is(err, volume.ErrLoss) {
				t.Errorf("read: %v", err)
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
			if all, err := filepath.Glob(filepath.Join(root, "journals", "*.journal")); err != nil || len(all) != 1 {
				t.Errorf("journals: %q, %v", all, err)
			}
		})
	}
}
