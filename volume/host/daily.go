package host

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
)

const (
	firstDaily = time.Hour // after the start
	everyDaily = 24 * time.Hour
)

// Run does what is to be done once a day, until ctx ends: objects are deleted that nothing uses, and stores are tried
// again, which may have become unsafe by an upgrade. Beside that it keeps a journal ready.
func (h *Host) Run(ctx context.Context) {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { h.spare.run(ctx) })
	if len(h.Stores()) > 0 {
		h.spare.want()
	}
	t := time.NewTimer(firstDaily)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		h.daily(ctx)
		t.Reset(everyDaily)
	}
}

func (h *Host) daily(ctx context.Context) {
	h.tellEvents()
	if len(h.Stores()) > 0 {
		h.spare.want()
	}
	tried := map[string]bool{}
	for _, a := range h.Attached() {
		v, err := h.Volume(ctx, a.ID)
		if err != nil {
			continue // it was detached, or has failed and said so
		}
		switch u, err := v.Sweep(ctx); {
		case err != nil:
			h.opts.Log.Warn("objects that nothing uses could not be looked for", "volume", a.Name, "err", err)
		case u.Objects > 0:
			h.opts.Log.Info("objects that nothing used were deleted", "volume", a.Name, "objects", u.Objects, "bytes", u.Bytes)
		}
		if tried[a.Store] {
			continue
		}
		tried[a.Store] = true
		h.warn(ctx, a.Store)
		if err := h.try(ctx, a.Store); errors.Is(err, store.ErrUnsafe) {
			h.opts.Log.Error("the store is no longer safe: move its volumes to another one", "store", a.Store, "err", err)
		} else if err != nil {
			h.opts.Log.Warn("the store could not be tried", "store", a.Store, "err", err)
		}
	}
}

// Warnings returns what is unwise about a store's settings. Where they cannot be looked up, that is a warning.
func (h *Host) Warnings(ctx context.Context, url string) ([]string, error) {
	s, err := finder{h}.find(ctx, url)
	if err != nil {
		return nil, err
	}
	all, err := Warnings(ctx, s)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s.warnings = len(all)
	return all, nil
}

// Warnings is Host.Warnings for a store that nobody may have prepared.
func Warnings(ctx context.Context, s store.Store) ([]string, error) {
	w, ok := store.As[store.Warner](s)
	if !ok {
		return nil, nil
	}
	all, err := w.Warnings(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil { // credentials may permit less than this, and servers not know it
		all = append(all, "whether the bucket keeps old versions, or deletes objects by their age, could not be looked up: "+err.Error())
	}
	return all, nil
}

func (h *Host) warn(ctx context.Context, url string) {
	all, err := h.Warnings(ctx, url)
	if err != nil {
		h.opts.Log.Warn("the store's settings could not be looked up", "store", url, "err", err)
	}
	for _, w := range all {
		h.opts.Log.Warn("the store's settings are unwise: "+w, "store", url)
	}
}

// try probes a store, and remembers whether it is safe.
func (h *Host) try(ctx context.Context, url string) error {
	s, err := finder{h}.find(ctx, url)
	if err != nil {
		return err
	}
	err = store.Probe(ctx, s, "probe/", func(string) {})
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil || errors.Is(err, store.ErrUnsafe) {
		s.unsafe = err
	}
	return err
}

func (h *Host) warningsOf(s *hostStore) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return s.warnings
}

func (h *Host) allStores() map[volume.ID]*hostStore {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.stores)
}
