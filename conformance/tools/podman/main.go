// Command podman-chunked writes and reads zstd:chunked layers by the library that Podman, Buildah and
// Skopeo use: the other side of what Remora reads and writes.
//
//	podman-chunked write TAR BLOB           writes BLOB and prints its annotations as JSON
//	podman-chunked apply BLOB JSON ROOT     pulls the chunks of BLOB into a store in ROOT and prints
//	                                        the directory of the layer
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/chunked"
	"go.podman.io/storage/pkg/chunked/compressor"
	"go.podman.io/storage/pkg/reexec"
)

func main() {
	if reexec.Init() {
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "podman-chunked:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "write":
		return write(args[1], args[2])
	case len(args) == 4 && args[0] == "apply":
		return apply(args[1], args[2], args[3])
	}
	return errors.New("want write TAR BLOB or apply BLOB JSON ROOT")
}

func write(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	annotations := map[string]string{}
	w, err := compressor.ZstdCompressor(out, annotations, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(annotations)
}

const layerID = "remora-conformance-layer"

// blob gives ranges of a file.
type blob struct{ f *os.File }

func (b blob) GetBlobAt(chunks []chunked.ImageSourceChunk) (chan io.ReadCloser, chan error, error) {
	streams, errs := make(chan io.ReadCloser), make(chan error)
	go func() {
		defer close(streams)
		defer close(errs)
		for _, c := range chunks {
			streams <- io.NopCloser(io.NewSectionReader(b.f, int64(c.Offset), int64(c.Length)))
		}
	}()
	return streams, errs, nil
}

func apply(path, annotationsJSON, root string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := digest.FromReader(f)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	annotations := map[string]string{}
	if err := json.Unmarshal([]byte(annotationsJSON), &annotations); err != nil {
		return err
	}
	store, err := storage.GetStore(storage.StoreOptions{
		GraphRoot: filepath.Join(root, "graph"), RunRoot: filepath.Join(root, "run"), GraphDriverName: "overlay",
		PullOptions: map[string]string{"enable_partial_images": "true"},
	})
	if err != nil {
		return err
	}
	differ, err := chunked.NewDiffer(context.Background(), store, sum, st.Size(), annotations, blob{f})
	if err != nil {
		return fmt.Errorf("layer is not read by chunks: %w", err)
	}
	defer differ.Close()
	staged, err := store.PrepareStagedLayer(&graphdriver.ApplyDiffWithDifferOpts{}, differ)
	if err != nil {
		return fmt.Errorf("layer is not read by chunks: %w", err)
	}
	layer, err := store.ApplyStagedLayer(storage.ApplyStagedLayerOptions{ID: layerID, DiffOutput: staged,
		DiffOptions: &graphdriver.ApplyDiffWithDifferOpts{}})
	if err != nil {
		return err
	}
	fmt.Println(filepath.Join(root, "graph", "overlay", layer.ID, "diff"))
	_, err = store.Shutdown(true)
	return err
}
