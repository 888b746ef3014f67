package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/internal/durable"
)

// indexStore is where "snapctl index" keeps what it made, two files an image: the index, and of which image
// it is.
type indexStore struct{ dir string }

// savedIndex says of which image an index is.
type savedIndex struct {
	Image   string        `json:"image"`
	Digest  digest.Digest `json:"digest"` // of the manifest
	Created time.Time     `json:"created"`
	Bytes   int64         `json:"bytes"`
}

const (
	savedIndexSuffix = ".index"
	savedNoteSuffix  = ".json"
)

func openIndexStore() (*indexStore, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "index")
	return &indexStore{dir}, os.MkdirAll(dir, 0o700)
}

func (s *indexStore) path(image digest.Digest, suffix string) string {
	return filepath.Join(s.dir, image.Encoded()+suffix)
}

// get returns an image's index, or an error that wraps os.ErrNotExist.
func (s *indexStore) get(image digest.Digest) ([]byte, error) {
	return os.ReadFile(s.path(image, savedIndexSuffix))
}

func (s *indexStore) put(note savedIndex, data []byte) error {
	doc, err := json.Marshal(note)
	if err != nil {
		return err
	}
	if err := durable.Sweep(s.dir); err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{{s.path(note.Digest, savedIndexSuffix), data}, {s.path(note.Digest, savedNoteSuffix), doc}} {
		if err := durable.Replace(f.path, f.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// list returns the notes, by image.
func (s *indexStore) list() ([]savedIndex, error) {
	paths, err := filepath.Glob(filepath.Join(s.dir, "*"+savedNoteSuffix))
	if err != nil {
		return nil, err
	}
	all := []savedIndex{}
	for _, p := range paths {
		doc, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		var note savedIndex
		if err := json.Unmarshal(doc, &note); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		all = append(all, note)
	}
	slices.SortFunc(all, func(a, b savedIndex) int {
		return cmp.Or(strings.Compare(a.Image, b.Image), a.Created.Compare(b.Created))
	})
	return all, nil
}

// remove deletes an image's index. One that is not there is no error.
func (s *indexStore) remove(image digest.Digest) error {
	var errs []error
	for _, suffix := range []string{savedIndexSuffix, savedNoteSuffix} {
		if err := os.Remove(s.path(image, suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shownIndex is what `snapctl index show --json` prints. Sizes are in bytes.
type shownIndex struct {
	Image  string            `json:"image"`
	Digest digest.Digest     `json:"digest"`
	Bytes  int64             `json:"bytes"`
	Packed int64             `json:"packed"` // of the layers it is of
	Layers []shownLayerIndex `json:"layers"`
}

type shownLayerIndex struct {
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`
	Plain   int64         `json:"plain"`
	Entries int           `json:"entries"`
	Points  int           `json:"points"`
	Extents int           `json:"extents"`
	Tree    int64         `json:"tree"`
	Windows int64         `json:"windows"`
	Digests int64         `json:"digests"`
}

// describeIndex reads the heads of an image's indexes.
func describeIndex(image string, manifest digest.Digest, data []byte) (*shownIndex, error) {
	layers, err := index.Split(data)
	if err != nil {
		return nil, err
	}
	shown := &shownIndex{Image: image, Digest: manifest, Bytes: int64(len(data))}
	for _, l := range layers {
		h, err := index.ReadHead(l)
		if err != nil {
			return nil, err
		}
		shown.Packed += h.Size
		shown.Layers = append(shown.Layers, shownLayerIndex{
			Digest: h.Digest, Size: h.Size, Plain: h.PlainSize, Entries: h.Entries, Points: h.Points, Extents: h.Extents,
			Tree: h.Tree, Windows: h.Windows, Digests: h.Digests,
		})
	}
	return shown, nil
}
