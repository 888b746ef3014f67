package host_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// silent is a store that carries out the next swap of a head, and does not answer it.
type silent struct {
	store.Store
	next    atomic.Bool
	carried chan struct{}
}

func (s *silent) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	o, err := s.Store.PutIfMatch(ctx, key, p, version)
	if strings.HasSuffix(key, "/head") && s.next.Swap(false) {
		close(s.carried)
		<-ctx.Done()
		return store.Object{}, context.Cause(ctx)
	}
	return o, err
}

// TestHalfTaken: an attach whose caller leaves after the store has carried the taking out stays in the record, whatever else is wrong with
// the store then. The next detach gives the volume up, and so does the next life of remorad.
func TestHalfTaken(t *testing.T) {
	for name, again := range map[string]bool{"by the next verb": false, "by the next life": true} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			sim, head := newStore(t)
			st := &silent{Store: sim, carried: make(chan struct{})}
			h := openHost(t, root, st)
			st.next.Store(true)
			ctx, stop := context.WithCancel(t.Context())
			go func() {
				<-st.carried
				stop()
			}()
			if _, err := h.Attach(ctx, url, head, host.AttachOptions{}); !errors.Is(err, volume.ErrHalfTaken) {
				t.Fatalf("attach: %v", err)
			}
			if n := len(h.Attached()); n != 1 {
				t.Fatalf("%d volumes in the record of a node that may have one", n)
			}
			if again {
				if err := h.Close(); err != nil {
					t.Fatal(err)
				}
				h = openHost(t, root, st)
				if err := h.ResumeAll(); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.Detach(t.Context(), head.ID); err != nil {
				t.Fatal(err)
			}
			if now, err := volume.Lookup(t.Context(), sim, "data"); err != nil || now.Owner != nil {
				t.Errorf("%+v, %v: want nobody's", now.Owner, err)
			}
			if n := len(h.Attached()); n != 0 {
				t.Errorf("%d volumes in the record", n)
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPutBack: the next life of a node refuses a store that was put back to before it gave a volume up, and goes on if told to.
func TestPutBack(t *testing.T) {
	root := t.TempDir()
	st, head := newStore(t)
	h := openHost(t, root, st)
	attach(t, h, head)
	if err := h.Detach(t.Context(), head.ID); err != nil {
		t.Fatal(err)
	}
	earlier := st.Snapshot()
	d := attach(t, h, head)
	if err := d.WriteAt(t.Context(), bytes.Repeat([]byte{1}, volume.Block), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Detach(t.Context(), head.ID), h.Close()); err != nil {
		t.Fatal(err)
	}
	st.Wait()
	st.Restore(earlier)
	st.SetFaults(simstore.Faults{})
	h = openHost(t, root, st)
	if _, err := h.Attach(t.Context(), url, head, host.AttachOptions{}); !errors.Is(err, volume.ErrLoss) ||
		!strings.Contains(err.Error(), "writes 1 to 1 are missing") {
		t.Errorf("a store that was put back: %v", err)
	}
	if n := len(h.Attached()); n != 0 {
		t.Errorf("%d volumes are attached of which none was taken", n)
	}
	if _, err := h.Attach(t.Context(), url, head, host.AttachOptions{AcceptLoss: true}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Detach(t.Context(), head.ID), h.Close()); err != nil {
		t.Fatal(err)
	}
}
