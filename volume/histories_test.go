package volume

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// slowSwap is a store in which something happens just before the first swap of a head.
type slowSwap struct {
	store.Store
	once   sync.Once
	before func()
}

func (s *slowSwap) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if strings.HasSuffix(key, "/head") {
		s.once.Do(s.before)
	}
	return s.Store.PutIfMatch(ctx, key, p, version)
}

func mustSet(t *testing.T, v *Volume, block int, b byte) {
	t.Helper()
	if err := v.WriteAt(t.Context(), bytes.Repeat([]byte{b}, Block), int64(block)*Block); err != nil {
		t.Fatal(err)
	}
}

func mustFlush(t *testing.T, v *Volume) {
	t.Helper()
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// mustBe fails unless blocks have the bytes of want, one each.
func mustBe(t *testing.T, v *Volume, want ...byte) {
	t.Helper()
	for i, b := range want {
		p := make([]byte, Block)
		if _, err := v.ReadAt(t.Context(), p, int64(i)*Block); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, bytes.Repeat([]byte{b}, Block)) {
			t.Errorf("block %d has %d, want %d", i, p[0], b)
		}
	}
}

// TestStaleJournal: a node dies with writes that nobody flushed, and opens its journal when it comes back. Before its swap of the
// head another node takes the volume, flushes a block and lets it go. What the journal has of that block is not replayed.
func TestStaleJournal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newTestStore(t)
		h, _, err := Create(t.Context(), st, "v", Spec{Size: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		a, b := newSimNode(t), newSimNode(t)
		v, err := openVolume(t, st, a, h.ID, Options{})
		if err != nil {
			t.Fatal(err)
		}
		mustSet(t, v, 0, 1)
		mustFlush(t, v)
		st.SetFaults(simstore.Faults{Outage: errors.New("out")})
		for range 3 { // more than the other node will: its numbers go on from what was flushed
			mustSet(t, v, 0, 2)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		st.SetFaults(simstore.Faults{})

		fenced, swap, left := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(left)
			w, err := openVolume(t, st, b, h.ID, Options{Store: &slowSwap{Store: st, before: func() { close(fenced); <-swap }}})
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(w.WriteAt(t.Context(), bytes.Repeat([]byte{3}, Block), 0), w.Flush(t.Context()), w.Detach(t.Context())); err != nil {
				t.Error(err)
			}
		}()
		<-fenced
		v, err = openVolume(t, st, a, h.ID, Options{Store: &slowSwap{Store: st, before: func() { close(swap); <-left }}})
		if err != nil {
			t.Fatal(err)
		}
		mustBe(t, v, 3)
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
