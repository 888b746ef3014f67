package suite

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// StoreWrapper tests a Store that wraps another: it is a Store, and store.As finds the inner one's abilities through it.
func StoreWrapper(t *testing.T, wrap func(inner store.Store) store.Store) {
	sim := func() *simstore.Store { return simstore.New(rand.New(rand.NewPCG(1, 1))) }
	Store(t, func(*testing.T) store.Store { return wrap(sim()) })
	t.Run("abilities", func(t *testing.T) {
		s := wrap(able{sim()})
		if s.String() != sim().String() {
			t.Errorf("its name is %q", s)
		}
		if !store.IsNear(s) {
			t.Error("it is not near")
		}
		if b, ok := store.As[store.Bulk](s); !ok || !b.IsBulk("bulk") || b.IsBulk("other") {
			t.Errorf("it has bulk: %v", ok)
		}
		w, ok := store.As[store.Warner](s)
		if !ok {
			t.Fatal("it does not warn")
		}
		if all, err := w.Warnings(t.Context()); err != nil || len(all) != 1 || all[0] != "beware" {
			t.Errorf("it warns %q, %v", all, err)
		}
		plain := wrap(sim())
		if _, ok := store.As[store.Warner](plain); ok || store.IsNear(plain) {
			t.Error("it has abilities that the inner store has not")
		}
	})
}

// able is a Store with every ability.
type able struct{ *simstore.Store }

func (able) Warnings(context.Context) ([]string, error) { return []string{"beware"}, nil }
func (able) Near() bool                                 { return true }
func (able) IsBulk(key string) bool                     { return key == "bulk" }
