package host_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

const (
	url  = "sim:"
	size = 8 << 20
)

// openHost opens a root. When its test has ended, what the root's files say can be read by another life.
func openHost(t *testing.T, root string, st store.Store) *host.Host {
	t.Helper()
	opts := host.Options{Root: root, Journal: 16 << 20, OpenStore: func(string) (store.Store, error) { return st, nil }}
	h, err := host.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		again, err := host.Open(opts)
		if err != nil {
			t.Errorf("at the end: %v", err)
			return
		}
		if err := again.Close(); err != nil {
			t.Errorf("at the end: %v", err)
		}
	})
	return h
}

// newStore returns a store with a volume. When its test has ended Check walks over that.
func newStore(t *testing.T) (*simstore.Store, *volume.Head) {
	t.Helper()
	s := simstore.New(rand.New(rand.NewPCG(1, 1)))
	if _, err := volume.Init(t.Context(), s, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	head, _, err := volume.Create(t.Context(), s, "data", volume.Spec{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r, err := volume.Check(context.Background(), s.Snapshot(), "data", true, func(string) {})
		if err != nil || len(r.Problems) > 0 {
			t.Errorf("at the end: check: %+v, %v", r, err)
		}
	})
	return s, head
}

func attach(t *testing.T, h *host.Host, head *volume.Head) *host.Device {
	t.Helper()
	d, err := h.Attach(t.Context(), url, head, host.AttachOptions{Progress: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustHold(t *testing.T, d *host.Device, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := d.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("bytes at %d are wrong (%v)", off, err)
	}
}

// TestEvents: that a volume was given up to the journal is written down in its store, as soon as that can be reached, by
// whichever process.
func TestEvents(t *testing.T) {
	root := t.TempDir()
	st, head := newStore(t)
	h := openHost(t, root, st)
	d := attach(t, h, head)
	st.SetFaults(simstore.Faults{Outage: errors.New("out of reach")})
	if err := d.WriteAt(t.Context(), make([]byte, volume.Block), 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Abandon(head.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	st.SetFaults(simstore.Faults{})
	h = openHost(t, root, st)
	attach(t, h, head)
	var all []volume.Event
	for end := time.Now().Add(time.Minute); len(all) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		var err error
		if all, err = volume.Events(t.Context(), st, head.ID); err != nil {
			t.Fatal(err)
		}
	}
	if len(all) != 1 || all[0].What != volume.EventAbandon || all[0].Name != "data" || all[0].Node == nil || *all[0].Node != h.NodeID() {
		t.Errorf("events: %+v", all)
	}
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := os.ReadFile(filepath.Join(root, "volumes.json")); err != nil || bytes.Contains(p, []byte(volume.EventAbandon)) {
		t.Errorf("an event that was told stays in the record: %s, %v", p, err)
	}
}

// TestResume: what was acknowledged is there for the next process, though its store is out of reach at first: requests
// wait.
func TestResume(t *testing.T) {
	root := t.TempDir()
	st, head := newStore(t)
	h := openHost(t, root, st)
	d := attach(t, h, head)
	want := bytes.Repeat([]byte{7}, volume.Block)
	st.SetFaults(simstore.Faults{Outage: errors.New("out of reach")})
	if err := d.WriteAt(t.Context(), want, 4*volume.Block); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}

	h = openHost(t, root, st)
	if at := h.Attached(); len(at) != 1 || at[0].Name != "data" {
		t.Fatalf("attached: %+v", at)
	}
	if known := h.StoresOf("data"); !slices.Equal(known, []string{url}) {
		t.Errorf("stores %q", known)
	}
	d, err := h.Resume(head.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := d.ReadAt(short, make([]byte, volume.Block), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a read while the store is out of reach: %v", err)
	}
	if d.Size() != size || d.Failed() != nil {
		t.Errorf("%d bytes, %v", d.Size(), d.Failed())
	}
	st.SetFaults(simstore.Faults{})
	mustHold(t, d, 4*volume.Block, want)
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
	if at := h.Attached(); len(at) != 0 {
		t.Errorf("still attached: %+v", at)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestResumeWithoutJournal: a device that the kernel still has fails if its journal is gone: it must not go on from what the store
// has.
func TestResumeWithoutJournal(t *testing.T) {
	root := t.TempDir()
	st, head := newStore(t)
	h := openHost(t, root, st)
	attach(t, h, head)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "journals")); err != nil {
		t.Fatal(err)
	}
	h = openHost(t, root, st)
	defer h.Close()
	d, err := h.Resume(head.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(t.Context(), make([]byte, volume.Block), 0); !errors.Is(err, volume.ErrLoss) {
		t.Errorf("read: %v", err)
	}
	if d.Failed() == nil {
		t.Error("the device does not say that it has failed")
	}
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Errorf("detach of what has failed: %v", err)
	}
	attach(t, h, head) // anew, for who knows that nothing is attached any more
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Error(err)
	}
}

// TestDetachLater: a detach that is given up while the store is out of reach leaves the volume with the node, and another one
// ends it.
func TestDetachLater(t *testing.T) {
	st, head := newStore(t)
	h := openHost(t, t.TempDir(), st)
	defer h.Close()
	d := attach(t, h, head)
	want := bytes.Repeat([]byte{9}, volume.Block)
	if err := d.WriteAt(t.Context(), want, 0); err != nil {
		t.Fatal(err)
	}
	st.SetFaults(simstore.Faults{Outage: errors.New("out of reach")})
	for range 2 {
		short, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := h.Detach(short, head.ID); err == nil {
			t.Error("detached without a store")
		}
		stop()
	}
	if len(h.Attached()) != 1 {
		t.Error("the node has forgotten the volume")
	}
	status, _, _, ok := h.Status(head.ID)
	if !ok || status.AtRisk != volume.Block || len(status.Waits) == 0 {
		t.Errorf("status: %+v, %v", status, ok)
	}
	st.SetFaults(simstore.Faults{})
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
	other := openHost(t, t.TempDir(), st)
	defer other.Close()
	mustHold(t, attach(t, other, head), 0, want)
	if err := other.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
}

// TestAbandon: what was left in the journal comes back on this node.
func TestAbandon(t *testing.T) {
	st, head := newStore(t)
	h := openHost(t, t.TempDir(), st)
	defer h.Close()
	d := attach(t, h, head)
	want := bytes.Repeat([]byte{5}, volume.Block)
	st.SetFaults(simstore.Faults{Outage: errors.New("out of reach")})
	if err := d.WriteAt(t.Context(), want, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Abandon(head.ID); err != nil {
		t.Fatal(err)
	}
	st.SetFaults(simstore.Faults{})
	mustHold(t, attach(t, h, head), 0, want)
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
}

// TestMachineID: the root says who a node is, whatever becomes of the machine's id, or of the machine.
func TestMachineID(t *testing.T) {
	root := t.TempDir()
	st, head := newStore(t)
	h := openHost(t, root, st)
	id := h.NodeID()
	d := attach(t, h, head)
	want := bytes.Repeat([]byte{3}, volume.Block)
	if err := d.WriteAt(t.Context(), want, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "node.json")
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p = bytes.Replace(p, []byte(`"machine": "`), []byte(`"machine": "x`), 1)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	h = openHost(t, root, st)
	defer h.Close()
	if h.NodeID() != id {
		t.Error("another node, for another id of the machine")
	}
	if d, err = h.Resume(head.ID, true); err != nil {
		t.Fatal(err)
	}
	mustHold(t, d, 0, want)
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
}

// TestMetrics: what is at risk and what was asked of the store can be read.
func TestMetrics(t *testing.T) {
	st, head := newStore(t)
	h := openHost(t, t.TempDir(), st)
	defer h.Close()
	d := attach(t, h, head)
	if err := d.WriteAt(t.Context(), make([]byte, 3*volume.Block), 0); err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewRegistry()
	h.Register(r)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	if got["remora_volume_at_risk_bytes"] != 3*volume.Block || got["remora_volume_written_bytes_total"] != 3*volume.Block ||
		got["remora_store_requests_total"] == 0 || got["remora_volume_lease_seconds"] <= 0 {
		t.Errorf("%v", got)
	}
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
}
