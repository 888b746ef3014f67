package host

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/remora-storage/remora/remote/store"
)

// Requests counts what a store was asked for.
type Requests struct {
	Get, Put, Delete, List, Failed int64
	Received, Sent                 int64 // bytes
	Lease                          int64 // requests for the node's lease, which are in none of the others
}

// meter counts requests.
type meter struct {
	store.Around
	gets, puts, deletes, lists, errors, received, sent atomic.Int64
}

func metered(s store.Store) *meter { return &meter{Around: store.Around{Store: s}} }

// requests returns what a store was asked for, for volumes and for the lease.
func (s *hostStore) requests() Requests {
	m, l := s.meter, s.leaseMeter
	return Requests{
		Get: m.gets.Load(), Put: m.puts.Load(), Delete: m.deletes.Load(), List: m.lists.Load(), Failed: m.errors.Load(),
		Received: m.received.Load(), Sent: m.sent.Load(), Lease: l.gets.Load() + l.puts.Load(),
	}
}

func (m *meter) count(kind *atomic.Int64, err error) {
	kind.Add(1)
	if err != nil && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrNoObject) {
		m.errors.Add(1)
	}
}

func (m *meter) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	p, o, err := m.Store.Get(ctx, key, off, n)
	m.count(&m.gets, err)
	m.received.Add(int64(len(p)))
	return p, o, err
}

func (m *meter) Head(ctx context.Context, key string) (store.Object, error) {
	o, err := m.Store.Head(ctx, key)
	m.count(&m.gets, err)
	return o, err
}

func (m *meter) put(p []byte, o store.Object, err error) (store.Object, error) {
	m.count(&m.puts, err)
	m.sent.Add(int64(len(p)))
	return o, err
}

func (m *meter) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	o, err := m.Store.Put(ctx, key, p)
	return m.put(p, o, err)
}

func (m *meter) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	o, err := m.Store.PutIfAbsent(ctx, key, p)
	return m.put(p, o, err)
}

func (m *meter) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	o, err := m.Store.PutIfMatch(ctx, key, p, version)
	return m.put(p, o, err)
}

func (m *meter) Delete(ctx context.Context, key string) error {
	err := m.Store.Delete(ctx, key)
	m.count(&m.deletes, err)
	return err
}

func (m *meter) List(ctx context.Context, prefix string, yield func(store.Object) bool) error {
	err := m.Store.List(ctx, prefix, yield)
	m.count(&m.lists, err)
	return err
}
