package boltfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/remora-storage/remora/snapshotter/boltfile"
)

// database returns a bbolt file with buckets of all sizes, after some thousand changes.
func database(t testing.TB, seed uint64, changes int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for range changes / 50 {
		err := db.Update(func(tx *bolt.Tx) error {
			top, err := tx.CreateBucketIfNotExists([]byte("v1"))
			if err != nil {
				return err
			}
			for range 50 {
				name := fmt.Appendf(nil, "snapshot %d", r.IntN(changes/4+1))
				if r.IntN(4) == 0 {
					if err := top.DeleteBucket(name); err != nil && top.Bucket(name) != nil {
						return err
					}
					continue
				}
				b, err := top.CreateBucketIfNotExists(name)
				if err != nil {
					return err
				}
				if err := b.Put(fmt.Appendf(nil, "key %d", r.IntN(50)), make([]byte, r.IntN(1+1<<r.IntN(14)))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func check(p []byte) error { return boltfile.Check(bytes.NewReader(p), int64(len(p))) }

// TestWhole: whatever bbolt writes is whole.
func TestWhole(t *testing.T) {
	for _, changes := range []int{0, 50, 500, 5000} {
		if err := check(database(t, 1, changes)); err != nil {
			t.Errorf("after %d changes: %v", changes, err)
		}
	}
}

// opens opens a file by bbolt itself, goes over all of it, and changes it. What panics or fails is returned.
func opens(t *testing.T, p []byte) (err error) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("bbolt panics: %v", r)
		}
	}()
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Update(func(tx *bolt.Tx) error {
		var all func(b *bolt.Bucket) error
		all = func(b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				if v == nil {
					return all(b.Bucket(k))
				}
				if got := b.Get(k); !bytes.Equal(got, v) {
					return fmt.Errorf("key %q is not found", k)
				}
				return nil
			})
		}
		if err := tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return all(b) }); err != nil {
			return err
		}
		b, err := tx.CreateBucketIfNotExists([]byte("new"))
		if err != nil {
			return err
		}
		return b.Put([]byte("key"), make([]byte, 100_000))
	})
}

// TestDamage: bbolt can use whatever Check finds whole, however the file was harmed.
func TestDamage(t *testing.T) {
	const seed = 20261129
	good := database(t, 2, 3000)
	for name, harm := range map[string]func(r *rand.Rand, p []byte) []byte{
		"cut": func(r *rand.Rand, p []byte) []byte { return p[:r.IntN(len(p))] },
		"zeros": func(r *rand.Rand, p []byte) []byte {
			at := r.IntN(len(p))
			clear(p[at:min(len(p), at+r.IntN(4096))])
			return p
		},
		"a number": func(r *rand.Rand, p []byte) []byte { p[r.IntN(len(p))] ^= byte(1 + r.IntN(255)); return p },
		"heads": func(r *rand.Rand, p []byte) []byte {
			p[r.IntN(len(p)/4096)*4096+r.IntN(64)] ^= byte(1 + r.IntN(255))
			return p
		},
		"a page": func(r *rand.Rand, p []byte) []byte {
			page := p[r.IntN(len(p)/4096)*4096:][:4096]
			for i := range page {
				page[i] = byte(r.Uint32())
			}
			return p
		},
		"two pages in one": func(r *rand.Rand, p []byte) []byte {
			copy(p[r.IntN(len(p)/4096)*4096:], p[r.IntN(len(p)/4096)*4096:][:4096])
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, found := rand.New(rand.NewPCG(seed, 0)), 0 // its own, whatever order the map has
			for range 80 {
				p := harm(r, bytes.Clone(good))
				err := check(p)
				if errors.Is(err, boltfile.ErrDamaged) {
					found++
					continue
				}
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if err := opens(t, p); err != nil {
					t.Fatalf("seed %d: it is whole, but %v", seed, err)
				}
			}
			if t.Logf("%d of 80 were found", found); found == 0 && name != "a number" { // most bytes are values, which have no sum
				t.Error("no damage was found")
			}
		})
	}
}
