package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/remora-storage/remora/remote/store"
)

// TestRemove: nothing of a volume stays, and one that is attached is refused.
func TestRemove(t *testing.T) {
	t.Parallel()
	v, st, _ := newTestVolume(t, 8<<20, Local)
	churn(t, v, make([]byte, 8<<20), rand.New(rand.NewPCG(6, 6)), 300)
	if _, err := Remove(t.Context(), st, "v"); !errors.Is(err, ErrAttached) {
		t.Fatalf("remove of an attached volume: %v", err)
	}
	if err := v.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Remove(t.Context(), st, "v"); err != nil {
		t.Fatal(err)
	}
	if err := st.List(t.Context(), "", func(o store.Object) bool {
		if !strings.HasPrefix(o.Key, "node/") {
			t.Errorf("%s stays", o.Key)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := Remove(t.Context(), st, "v"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a second remove: %v", err)
	}
}

// dying is a store whose client dies after some changes.
type dying struct {
	store.Store
	left int
}

var errDead = fmt.Errorf("dead: %w", store.ErrUnsafe) // of a kind that is not tried again

func (d *dying) die() bool {
	d.left--
	return d.left < 0
}

func (d *dying) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if d.die() {
		return store.Object{}, errDead
	}
	return d.Store.PutIfMatch(ctx, key, p, version)
}

func (d *dying) Delete(ctx context.Context, key string) error {
	if d.die() {
		return errDead
	}
	return d.Store.Delete(ctx, key)
}

// TestRemoveKilled: a removal that is killed before any of its changes can be ended, and until then the volume is of no
// other use.
func TestRemoveKilled(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		v, st, _ := newTestVolume(t, 8<<20, Local)
		churn(t, v, make([]byte, 8<<20), rand.New(rand.NewPCG(6, 6)), 100)
		id := v.ID()
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := Remove(t.Context(), &dying{st, n}, "v")
		if err == nil {
			if n < 5 {
				t.Fatalf("a removal has %d changes only", n)
			}
			return
		}
		_, err = Lookup(t.Context(), st, "v")
		if n == 0 && err != nil || n > 0 && !errors.Is(err, ErrHalfRemoved) {
			t.Fatalf("dead after %d changes: lookup: %v", n, err)
		}
		if n > 0 {
			if _, _, err := Create(t.Context(), st, "v", Spec{Size: 8 << 20, Class: Local}); !errors.Is(err, ErrHalfRemoved) {
				t.Errorf("dead after %d changes: create: %v", n, err)
			}
			if _, err := openVolume(t, st, newSimNode(t), id, Options{}); err == nil {
				t.Errorf("dead after %d changes: it is attached", n)
			}
		}
		if _, err := Remove(t.Context(), st, "v"); err != nil {
			t.Fatal(err)
		}
		if u, err := StoreUsage(t.Context(), st, id); err != nil || u.Objects > 0 {
			t.Errorf("%d objects stay (%v)", u.Objects, err)
		}
		if _, err := Lookup(t.Context(), st, "v"); !errors.Is(err, ErrNotFound) {
			t.Errorf("the name stays: %v", err)
		}
	}
}
