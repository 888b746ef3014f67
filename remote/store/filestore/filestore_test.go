package filestore_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
)

func open(t *testing.T, dir string) *filestore.Store {
	t.Helper()
	s, err := filestore.Make(dir, filestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	suite.Store(t, func(t *testing.T) store.Store { return open(t, t.TempDir()) })
}

func TestBulk(t *testing.T) {
	suite.Bulk(t, func(t *testing.T) store.Bulk {
		s, err := filestore.Make(t.TempDir(), filestore.Options{Bulk: func(string) bool { return true }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// TestHandles: an object that somebody else has deleted or replaced is not read from a file that is still open, no file
// without a name stays open, and none that nobody reads any more.
func TestHandles(t *testing.T) {
	dir := t.TempDir()
	bulk, err := filestore.Make(dir, filestore.Options{Bulk: func(string) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, dir)
	ctx := t.Context()
	put := func(s *filestore.Store, key, content string) {
		t.Helper()
		if _, err := s.Put(ctx, key, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	mustRead := func(key, want string) {
		t.Helper()
		if p, _, err := bulk.Get(ctx, key, 1, 3); err != nil || string(p) != want {
			t.Errorf("%s: %q, %v; want %q", key, p, err, want)
		}
	}
	put(bulk, "a", "first")
	mustRead("a", "irs")
	put(other, "a", "second")
	mustRead("a", "eco")
	if err := other.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if p, _, err := bulk.Get(ctx, "a", 1, 3); !errors.Is(err, store.ErrNoObject) {
		t.Errorf("read after it was deleted: %q, %v", p, err)
	}
	for i := range 200 {
		key := fmt.Sprintf("many/%d", i)
		put(bulk, key, "content")
		mustRead(key, "ont")
	}
	for i := range 200 {
		if err := bulk.Delete(ctx, fmt.Sprintf("many/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := openBelow(t, dir); n > 0 {
		t.Errorf("%d files that were deleted are open", n)
	}
	put(bulk, "b", "content")
	mustRead("b", "ont")
	if n := openBelow(t, dir); n != 1 {
		t.Errorf("%d files are open, want the one that is read", n)
	}
	for range 200 {
		if openBelow(t, dir) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("a file that nobody reads stays open")
}

// openBelow counts this process's open files in a directory.
func openBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, dir) { // those of others end meanwhile
			n++
		}
	}
	return n
}

// TestProcesses: several processes count up one object. A comparison that only excludes goroutines loses some.
func TestProcesses(t *testing.T) {
	const processes, each = 4, 50
	dir := os.Getenv("REMORA_TEST_COUNT")
	if dir != "" {
		count(t, open(t, dir), each)
		return
	}
	dir = t.TempDir()
	if _, err := open(t, dir).PutIfAbsent(t.Context(), "count", []byte("0")); err != nil {
		t.Fatal(err)
	}
	var started sync.WaitGroup
	for range processes {
		started.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcesses$")
			cmd.Env = append(os.Environ(), "REMORA_TEST_COUNT="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	started.Wait()
	if p, _, err := open(t, dir).Get(t.Context(), "count", 0, -1); err != nil || string(p) != fmt.Sprint(processes*each) {
		t.Errorf("%s increments of %d are there (%v)", p, processes*each, err)
	}
}

func count(t *testing.T, s store.Store, n int) {
	for n > 0 {
		p, o, err := s.Get(t.Context(), "count", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		var v int
		if _, err := fmt.Sscan(string(p), &v); err != nil {
			t.Fatal(err)
		}
		switch _, err := s.PutIfMatch(t.Context(), "count", fmt.Append(nil, v+1), o.Version); {
		case err == nil:
			n--
		case !errors.Is(err, store.ErrChanged):
			t.Fatal(err)
		}
	}
}

// TestSweep: what a killed process has left goes at the next start, and nothing of a living one.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	left := filepath.Join(dir, ".new", "1-1")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file of a dead process stays (%v)", err)
	}
	if _, err := s.Put(t.Context(), "a/b/c", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a/b/c"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("empty directories stay (%v)", err)
	}
}

// TestManyStores: stores in one directory, of one process, are opened while others put objects: no put fails, whatever names
// the files have that others write and sweep away meanwhile.
func TestManyStores(t *testing.T) {
	dir := t.TempDir()
	var writers sync.WaitGroup
	for w := range 4 {
		s := open(t, dir)
		writers.Go(func() {
			for i := range 50 {
				key := fmt.Sprintf("%d/%d", w, i%10)
				for _, err := range []error{
					second(s.Put(t.Context(), key, []byte("x"))), second(s.Put(t.Context(), key, []byte("y"))),
					s.Delete(t.Context(), key), second(s.PutIfAbsent(t.Context(), key, []byte("z"))), s.Delete(t.Context(), key),
				} {
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		writers.Wait()
		close(ended)
	}()
	for {
		select {
		case <-ended:
			return
		default:
			open(t, dir) // which sweeps
		}
	}
}

// TestDeletesSideBySide: whose Delete finds the directory gone that another's has emptied has deleted its object all the same.
func TestDeletesSideBySide(t *testing.T) {
	s := open(t, t.TempDir())
	for i := range 200 {
		keys := []string{"dir/a", "dir/b", "dir/c"}
		for _, k := range keys {
			if _, err := s.Put(t.Context(), k, nil); err != nil {
				t.Fatal(err)
			}
		}
		var deleters sync.WaitGroup
		for _, k := range keys {
			deleters.Go(func() {
				if err := s.Delete(t.Context(), k); err != nil {
					t.Errorf("round %d: %v", i, err)
				}
			})
		}
		deleters.Wait()
	}
}

func second[T any](_ T, err error) error { return err }

func TestKeys(t *testing.T) {
	s := open(t, t.TempDir())
	for _, k := range []string{"", "/", "a//b", "../x", "a/../b", ".locks/x", "a/", "ü", "a b", strings.Repeat("k", 201)} {
		if _, err := s.Put(t.Context(), k, nil); err == nil {
			t.Errorf("key %q was taken", k)
		}
	}
}

// TestReserve: where room is short bulk is refused, while what frees room is not.
func TestReserve(t *testing.T) {
	s, err := filestore.Make(t.TempDir(), filestore.Options{Bulk: func(k string) bool { return strings.HasPrefix(k, "bulk") }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "bulk/1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=32m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", dir).Run()
	if s, err = filestore.Make(dir, filestore.Options{Bulk: func(k string) bool { return strings.HasPrefix(k, "bulk") }}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "bulk/1", make([]byte, 1<<20)); !errors.Is(err, store.ErrFull) {
		t.Errorf("bulk on a small disk: %v", err)
	}
	if _, err := s.Put(t.Context(), "small", make([]byte, 1<<20)); err != nil {
		t.Errorf("what may use the reserve: %v", err)
	}
	if _, err := s.Put(t.Context(), "large", make([]byte, 40<<20)); !errors.Is(err, store.ErrFull) {
		t.Errorf("more than there is: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, ".new")); err != nil || len(entries) > 0 {
		t.Errorf("%d temporary files stay (%v)", len(entries), err)
	}
}

// TestTooLarge: an object that somebody else has put into the directory is not read into memory whole.
func TestTooLarge(t *testing.T) {
	dir := t.TempDir()
	s, err := filestore.Make(dir, filestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Put(t.Context(), "k", []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "k*"))
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	if err := os.Truncate(paths[0], store.MostRead+10); err != nil {
		t.Fatal(err)
	}
	taken := heap.Allocated(func() {
		if _, _, err := s.Get(t.Context(), "k", 0, -1); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("all of it: %v", err)
		}
		if p, _, err := s.Get(t.Context(), "k", store.MostRead, -1); err != nil || len(p) != 10 {
			t.Errorf("its end: %d bytes, %v", len(p), err)
		}
		h, err := s.Head(t.Context(), "k")
		if err != nil || h.Size != store.MostRead+10 || h.Version == o.Version {
			t.Errorf("head: %+v, %v", h, err)
		}
	})
	if taken > 8<<20 {
		t.Errorf("that took %d MiB", taken>>20)
	}
}

// TestAway: a store whose directory is not there is away, whatever is asked of it, and nothing is made in its place. The same
// goes for an empty directory, where a file system may be mounted later.
func TestAway(t *testing.T) {
	parent := t.TempDir()
	dir, aside := filepath.Join(parent, "some", "store"), filepath.Join(parent, "aside")
	s, err := filestore.Open(dir, filestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	mustBeAway := func(s *filestore.Store, when string) {
		t.Helper()
		for what, err := range map[string]error{
			"get": third(s.Get(ctx, "a/b", 0, -1)), "head": second(s.Head(ctx, "a/b")), "put": second(s.Put(ctx, "a/b", []byte("x"))),
			"put new": second(s.PutIfAbsent(ctx, "a/c", []byte("x"))), "replace": second(s.PutIfMatch(ctx, "a/b", []byte("x"), "v")),
			"delete": s.Delete(ctx, "a/b"), "list": s.List(ctx, "", func(store.Object) bool { return true }),
		} {
			if !errors.Is(err, store.ErrAway) || errors.Is(err, store.ErrNoObject) || errors.Is(err, store.ErrChanged) {
				t.Errorf("%s, %s: %v", when, what, err)
			}
		}
	}
	mustBeAway(s, "never made")
	if entries, err := os.ReadDir(parent); err != nil || len(entries) > 0 {
		t.Errorf("%d entries were made (%v)", len(entries), err)
	}
	if err := s.Make(); err != nil {
		t.Fatal(err)
	}
	o, err := s.Put(ctx, "a/b", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	mustBeAway(s, "renamed")
	mustBeAway(reopened(t, dir), "renamed, and opened again")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mustBeAway(s, "an empty directory in its place")
	mustBeAway(reopened(t, dir), "an empty directory, and opened again")
	if err := os.Remove(dir); err != nil {
		t.Errorf("something was made in an empty directory: %v", err)
	}
	if err := os.Rename(aside, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutIfMatch(ctx, "a/b", []byte("y"), o.Version); err != nil {
		t.Errorf("back again: %v", err)
	}
}

// TestRestored: a store that was put back without the directories that hold no objects works, in a process that uses it, too.
func TestRestored(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, now := range []func() *filestore.Store{func() *filestore.Store { return s }, func() *filestore.Store { return reopened(t, dir) }} {
		if _, err := s.Put(t.Context(), store.MarkKey, []byte("mark")); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{".new", ".locks"} {
			if err := os.RemoveAll(filepath.Join(dir, d)); err != nil {
				t.Fatal(err)
			}
		}
		_, err := now().Put(t.Context(), "k", []byte("x"))
		if err != nil { // callers try again
			_, err = now().Put(t.Context(), "k", []byte("x"))
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func reopened(t *testing.T, dir string) *filestore.Store {
	t.Helper()
	s, err := filestore.Open(dir, filestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func third[T, U any](_ T, _ U, err error) error { return err }
