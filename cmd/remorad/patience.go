package main

import (
	"context"
	"errors"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

const storePatience = 5 * time.Second

var errNoAnswer = errors.New("the store does not answer")

// patiently calls do with a store that is only asked for what would be good to know: once it has answered nothing for a
// while, do's context ends.
func patiently(ctx context.Context, s store.Store, do func(context.Context, store.Store) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := time.AfterFunc(storePatience, func() { cancel(errNoAnswer) })
	defer t.Stop()
	err := do(ctx, patient{store.Around{Store: s}, t})
	if err != nil && errors.Is(context.Cause(ctx), errNoAnswer) {
		return errNoAnswer
	}
	return err
}

// patient is a store whose answers keep a timer from firing.
type patient struct {
	store.Around
	t *time.Timer
}

func (p patient) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	b, o, err := p.Store.Get(ctx, key, off, n)
	p.t.Reset(storePatience)
	return b, o, err
}

func (p patient) List(ctx context.Context, prefix string, yield func(store.Object) bool) error {
	err := p.Store.List(ctx, prefix, func(o store.Object) bool {
		p.t.Reset(storePatience)
		return yield(o)
	})
	p.t.Reset(storePatience)
	return err
}
