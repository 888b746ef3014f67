package snapshotter

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// An earlierRoot is a root as an earlier version left it, with the images that its registry has.
type earlierRoot struct {
	Host   string // of the registry
	Images []*image
	Files  []struct {
		Path string
		Mode fs.FileMode
		Dir  bool
		Size int64
		Data []struct { // around the holes
			Off   int64
			Bytes []byte
		}
	}
}

// loadEarlier reads what the version of commit 9966ce9 left: containerd had pulled the images "lazy" of an eStargz layer with files a and b
// and a zstd:chunked one with c, "whole" of a gzip layer with d, and "unread" of an eStargz layer with e. A container of each was made, and
// those of the first two read a, c and d, which brought b, too.
func loadEarlier(t *testing.T) *earlierRoot {
	t.Helper()
	f, err := os.Open("testdata/earlier.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	r := &earlierRoot{}
	if err := json.NewDecoder(z).Decode(r); err != nil {
		t.Fatal(err)
	}
	return r
}

// write makes the root anew, of a registry at another address. change may change what is in a file.
func (r *earlierRoot) write(t *testing.T, root, host string, change func(path string, p []byte)) {
	t.Helper()
	for _, f := range r.Files {
		path := filepath.Join(root, f.Path)
		if f.Dir {
			if err := errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, f.Mode)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, f.Mode)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(path) == bindingFile {
			f.Data[0].Bytes = bytes.ReplaceAll(f.Data[0].Bytes, []byte(r.Host), []byte(host))
			f.Size = int64(len(f.Data[0].Bytes))
		}
		err = file.Truncate(f.Size)
		for _, d := range f.Data {
			p := bytes.Clone(d.Bytes)
			if change != nil && d.Off == 0 {
				change(f.Path, p)
			}
			_, werr := file.WriteAt(p, d.Off)
			err = errors.Join(err, werr)
		}
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// lines are what a file of an earlier root's image has.
func lines(name string) []byte {
	var b bytes.Buffer
	for i := range 3000 {
		fmt.Fprintf(&b, "line %d of %s\n", i, name)
	}
	return b.Bytes()
}

// said is a log that is kept, too.
type said struct {
	t  *testing.T
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p)
	return s.t.Output().Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestRootOfEarlierVersion: what an earlier version had in its root serves: snapshots and records as they are, and the cache's bytes
// without a request, except for what nobody had read. Where the cache is of a form that is not known here, that is said, and the layers
// are fetched. Then the same images are pulled into another namespace.
func TestRootOfEarlierVersion(t *testing.T) {
	const newer = "a cache of a form that is not known"
	for _, name := range []string{"as it is", newer} {
		t.Run(name, func(t *testing.T) {
			r, log := loadEarlier(t), &said{t: t}
			o := newOrigin(t, r.Images...)
			b := newBed(t, o, func(b *bed) {
				b.opts.Log = slog.New(slog.NewTextHandler(log, nil))
				r.write(t, b.root, o.Host(), func(path string, p []byte) {
					if name == newer && filepath.Base(path) == "extents" {
						p[8]++ // the version
					}
				})
			})
			want := map[string][]string{"lazy": {"a", "b", "c"}, "whole": {"d"}, "unread": {"e"}}
			for _, im := range r.Images {
				b.fetch(im)
				mounts, err := b.Mounts(b.ctx, "container-"+im.Path)
				if err != nil {
					t.Fatalf("%s: %v", im.Path, err)
				}
				for _, file := range want[im.Path] {
					b.sees(mounts, file, lines(file))
				}
				for _, l := range im.Layers {
					asked := o.Requests("blobs", l.Digest().String()) > 0
					if asked != (name == newer || im.Path == "unread") {
						t.Errorf("%s: its registry was asked for layer %s: %v", im.Path, l.Digest(), asked)
					}
				}
			}
			if told := strings.Contains(log.String(), "image not in the cache"); told != (name == newer) {
				t.Errorf("the log says that the cache is empty: %v", told)
			}
			damaged, err := filepath.Glob(filepath.Join(b.root, "*.damaged-*"))
			more, merr := filepath.Glob(filepath.Join(b.root, "snapshots", "*", "*.damaged-*"))
			if damaged = slices.Concat(damaged, more); err != nil || merr != nil || len(damaged) > 0 {
				t.Errorf("set aside: %v, %v, %v", damaged, err, merr)
			}
			if strings.Contains(log.String(), "level=ERROR") {
				t.Error("the log has errors")
			}
			for _, st := range b.Status().Layers {
				if st.State != "mounted" {
					t.Errorf("status: %+v", st)
				}
			}
			b.ctx = namespaces.WithNamespace(t.Context(), "other")
			for _, im := range r.Images {
				mounts := b.run("further-"+im.Path, b.pull(im))
				for _, file := range want[im.Path] {
					b.sees(mounts, file, lines(file))
				}
			}
			b.restart() // which removes what nobody can use
		})
	}
}
