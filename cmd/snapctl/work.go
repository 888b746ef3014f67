package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/internal/durable"
)

// work is where a conversion keeps its files, and what earlier ones have made of which layers.
//
//	CACHE/remora/convert/layers/KEY   what became of a layer, as JSON
//	CACHE/remora/convert/run-*/       files of a run that holds a lock on its directory
type work struct {
	root, dir string
	lock      *os.File
}

// knownLayer is what is remembered of a layer.
type knownLayer struct {
	Layer  layerResult `json:"layer"`
	Places []string    `json:"places"` // registry repositories that got it
}

const knownFor = 90 * 24 * time.Hour

// workDir makes a directory for a run, and removes those of runs that were killed.
func workDir() (*work, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	w := &work{root: filepath.Join(cache, "convert")}
	if err := os.MkdirAll(filepath.Join(w.root, "layers"), 0o700); err != nil {
		return nil, err
	}
	w.sweep()
	if w.dir, err = os.MkdirTemp(w.root, "run-"); err != nil {
		return nil, err
	}
	if w.lock, err = lockDir(w.dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(w.dir))
	}
	return w, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sweep removes what nobody uses any more. What it cannot remove, the next run tries again.
func (w *work) sweep() {
	runs, _ := filepath.Glob(filepath.Join(w.root, "run-*"))
	for _, dir := range runs {
		st, err := os.Stat(dir)
		if err != nil || time.Since(st.ModTime()) < time.Minute {
			continue // it may not have its lock yet
		}
		if f, err := lockDir(dir); err == nil {
			_ = os.RemoveAll(dir)
			f.Close()
		}
	}
	_ = durable.Sweep(filepath.Join(w.root, "layers"))
	layers, _ := filepath.Glob(filepath.Join(w.root, "layers", "*"))
	for _, path := range layers {
		if st, err := os.Stat(path); err == nil && time.Since(st.ModTime()) > knownFor {
			_ = os.Remove(path)
		}
	}
}

func (w *work) close() {
	_ = os.RemoveAll(w.dir) // else the next run does
	w.lock.Close()
}

// file makes a file that goes with its descriptor.
func (w *work) file(pattern string) (*os.File, error) {
	f, err := os.CreateTemp(w.dir, pattern)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (w *work) path(key string) string { return filepath.Join(w.root, "layers", key) }

func (w *work) read(key string) (k knownLayer) {
	p, err := os.ReadFile(w.path(key))
	if err != nil || json.Unmarshal(p, &k) != nil {
		return knownLayer{} // it is made again
	}
	return k
}

// known returns what became of a layer in an earlier run, or nil.
func (w *work) known(key string) *layerResult {
	k := w.read(key)
	if k.Layer.Descriptor.Digest.Validate() != nil || k.Layer.DiffID.Validate() != nil {
		return nil
	}
	return &k.Layer
}

// places returns where earlier runs have stored what became of a layer.
func (w *work) places(key string) []string { return w.read(key).Places }

// remember notes what became of a layer and where it is. Losing that costs only time.
func (w *work) remember(key string, r *layerResult, place string) {
	k := w.read(key)
	k.Layer = *r
	if place != "" && !slices.Contains(k.Places, place) {
		k.Places = append(k.Places, place)
	}
	p, err := json.Marshal(k)
	if err != nil {
		return
	}
	_ = durable.Replace(w.path(key), p, 0o600)
}
