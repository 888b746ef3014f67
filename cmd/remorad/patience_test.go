package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// slowStore answers each Get late.
type slowStore struct {
	store.Store
	late time.Duration
}

func (s slowStore) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	select {
	case <-time.After(s.late):
	case <-ctx.Done():
		return nil, store.Object{}, context.Cause(ctx)
	}
	return s.Store.Get(ctx, key, off, n)
}

// TestPatiently: a store that answers slowly is waited for however long that takes as a whole, one that does not answer is
// not.
func TestPatiently(t *testing.T) {
	for late, want := range map[time.Duration]error{storePatience - time.Second: nil, storePatience + time.Second: errNoAnswer} {
		synctest.Test(t, func(t *testing.T) {
			st := simstore.New(rand.New(rand.NewPCG(1, 1)))
			if _, err := st.Put(t.Context(), "a", []byte("b")); err != nil {
				t.Fatal(err)
			}
			err := patiently(t.Context(), slowStore{st, late}, func(ctx context.Context, s store.Store) error {
				for range 10 {
					if _, _, err := s.Get(ctx, "a", 0, -1); err != nil {
						return err
					}
				}
				return nil
			})
			if !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("answers after %v: %v", late, err)
			}
		})
	}
}

func TestPatientIsAStore(t *testing.T) {
	suite.StoreWrapper(t, func(inner store.Store) store.Store {
		timer := time.NewTimer(time.Hour)
		t.Cleanup(func() { timer.Stop() })
		return patient{store.Around{Store: inner}, timer}
	})
}
