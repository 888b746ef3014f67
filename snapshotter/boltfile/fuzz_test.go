package boltfile_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/snapshotter/boltfile"
)

const smallPage = 1024 // bytes

// small returns a bbolt file of few pages, without what lies behind them: an input of many would be mutated a few times a second.
func small(t testing.TB, buckets, keys int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, PageSize: smallPage})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		top, err := tx.CreateBucket([]byte("v1"))
		for i := 0; err == nil && i < buckets; i++ {
			var b *bolt.Bucket
			if b, err = top.CreateBucket(fmt.Appendf(nil, "snapshot %d", i)); err != nil {
				break
			}
			for k := 0; err == nil && k < keys; k++ {
				err = b.Put(fmt.Appendf(nil, "key %d", k), make([]byte, k*8))
			}
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := check(p); err != nil {
		t.Fatal(err)
	}
	pages := max(binary.LittleEndian.Uint64(p[16+40:]), binary.LittleEndian.Uint64(p[smallPage+16+40:]))
	return p[:pages*smallPage]
}

// seal gives both metas of a file the sums that they should have, so that what they say is looked at.
func seal(p []byte) {
	for _, at := range []int{16, smallPage + 16} {
		if len(p) >= at+64 {
			h := fnv.New64a()
			h.Write(p[at : at+56]) // no hash fails
			binary.LittleEndian.PutUint64(p[at+56:], h.Sum64())
		}
	}
}

// FuzzCheck: no file makes Check panic, and none of these is read without end.
func FuzzCheck(f *testing.F) {
	for _, p := range [][]byte{small(f, 0, 0), small(f, 2, 3), small(f, 12, 9), {}} {
		f.Add(p)
		f.Add(p[:len(p)*2/3])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for range 2 {
			heap.RecordMost(len(p)).Allocates(t, func() int64 {
				if err := check(p); err != nil && !errors.Is(err, boltfile.ErrDamaged) {
					t.Error(err)
				}
				return 0
			})
			seal(p)
		}
	})
}
