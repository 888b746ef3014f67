package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/remora-storage/remora/conformance/testbed"
)

const changedFiles = 20

// update measures what is fetched to make an updated image complete when the old one is here: a
// rebuild in which a few files have changed.
func update(ctx context.Context, o options) (err error) {
	s, err := testbed.NewStack(filepath.Join(o.work, "update"), testbed.Options{LogLevel: "info"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	p := testbed.Programs[0]
	if _, err := p.Layout(ctx); err != nil { // makes the trees
		return err
	}
	base, full := filepath.Join(testbed.Work(), "trees", "base"), filepath.Join(testbed.Work(), "trees", p.Name)
	rebuilt := filepath.Join(o.work, "rebuilt")
	if _, err := testbed.Output(ctx, nil, "cp", "-a", full, rebuilt); err != nil {
		return err
	}
	if err := changeSome(filepath.Join(rebuilt, "usr/lib/python3.11")); err != nil {
		return err
	}
	for tag, tree := range map[string]string{"old": full, "new": rebuilt} {
		layout := filepath.Join(o.work, "update-"+tag)
		if err := testbed.WriteImage(ctx, layout, "src", []testbed.Diff{{From: "", To: base}, {From: base, To: tree}}); err != nil {
			return err
		}
		if _, err := s.Snapctl(ctx, "convert", "oci:"+layout+":src", s.Ref("update:"+tag)); err != nil {
			return err
		}
	}
	fetched := map[string]int64{} // by layer
	for _, tag := range []string{"old", "new"} {
		if _, err := s.Snapctl(ctx, "pull", s.Ref("update:"+tag)); err != nil {
			return err
		}
		if _, err := s.Snapctl(ctx, "fetch", "--cache-only", s.Ref("update:"+tag)); err != nil {
			return err
		}
		st, err := s.Status(ctx)
		if err != nil {
			return err
		}
		for _, l := range st.Layers {
			if _, known := fetched[l.Digest]; !known {
				fetched[l.Digest] = l.FetchedBytes
				if tag == "new" {
					if err := printUpdate(s, st, l, fetched); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

func printUpdate(s *testbed.Stack, st *testbed.Status, l testbed.LayerStatus, old map[string]int64) error {
	have := map[string]bool{}
	for d := range old {
		if d == l.Digest {
			continue
		}
		if err := chunks(s, d, func(digest string, _ int64) { have[digest] = true }); err != nil {
			return err
		}
	}
	need, size := int64(0), int64(0)
	if err := chunks(s, l.Digest, func(digest string, packed int64) {
		size += packed
		if !have[digest] {
			need += packed
		}
		have[digest] = true
	}); err != nil {
		return err
	}
	toc, err := tocBytes(s, l.Digest)
	if err != nil {
		return err
	}
	fmt.Printf("\nUpdated image with %d changed files in a layer of %.1f MB: complete and checked after %.2f MB fetched; "+
		"its new extents and its table of contents are %.2f MB. Ratio %.2f.\n",
		changedFiles, float64(size)/1e6, float64(l.FetchedBytes)/1e6, float64(need+toc)/1e6, float64(l.FetchedBytes)/float64(need+toc))
	return nil
}

// changeSome adds a line to some files of a tree.
func changeSome(dir string) error {
	n := 0
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || n >= changedFiles || !d.Type().IsRegular() || !strings.HasSuffix(p, ".py") {
			return err
		}
		n++
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("# rebuilt\n")
		return errors.Join(err, f.Close())
	})
}

func blobOf(s *testbed.Stack, digest string) (*io.SectionReader, error) {
	resp, err := http.Get("http://" + s.Addr + "/v2/update/blobs/" + digest)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("blob %s: %s, %w", digest, resp.Status, err)
	}
	return io.NewSectionReader(strings.NewReader(string(p)), 0, int64(len(p))), nil
}

// chunks yields the digest and the packed bytes of every chunk of a layer, by stargz's own reader.
func chunks(s *testbed.Stack, digest string, yield func(digest string, packed int64)) error {
	blob, err := blobOf(s, digest)
	if err != nil {
		return err
	}
	r, err := estargz.Open(blob)
	if err != nil {
		return err
	}
	var walk func(e *estargz.TOCEntry) error
	walk = func(e *estargz.TOCEntry) error {
		if e.Type == "reg" {
			for off := int64(0); off < e.Size; {
				c, ok := r.ChunkEntryForOffset(e.Name, off)
				if !ok {
					return fmt.Errorf("%s has no chunk at %d", e.Name, off)
				}
				yield(c.ChunkDigest, c.NextOffset()-c.Offset)
				off = c.ChunkOffset + c.ChunkSize
			}
		}
		var err error
		e.ForeachChild(func(_ string, child *estargz.TOCEntry) bool {
			err = walk(child)
			return err == nil
		})
		return err
	}
	root, ok := r.Lookup("")
	if !ok {
		return errors.New("no root")
	}
	return walk(root)
}

func tocBytes(s *testbed.Stack, digest string) (int64, error) {
	blob, err := blobOf(s, digest)
	if err != nil {
		return 0, err
	}
	off, _, err := estargz.OpenFooter(blob)
	return blob.Size() - off, err
}
