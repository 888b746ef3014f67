package images_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/fs/index"
	fslayout "github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote/registry"
)

// indexBomb publishes an index that claims a layer, of a tree with very many directories that nobody lists, or of more bytes than the
// layer can have.
func indexBomb(ctx context.Context, reg *registry.Registry, k int, repo registry.Repository, layout string, layer testbed.Blob) error {
	w := index.NewWriter()
	b := index.Blob{Digest: digest.FromBytes(layer.Data), Size: int64(len(layer.Data)), DiffID: layer.DiffID, Codec: blob.Spans,
		Points: []inflate.Point{{}}}
	if k%2 == 0 {
		w.Add(&index.Entry{Name: "s", Inode: fslayout.Inode{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("a/", 2047) + "a"}}, true)
		for i := range 100 {
			w.Add(&index.Entry{Name: fmt.Sprintf("%d/s", i), Link: "s"}, true)
			w.Add(&index.Entry{Name: fmt.Sprintf("%d/s/f", i), Inode: fslayout.Inode{Mode: unix.S_IFIFO | 0o644}}, true)
		}
	} else {
		const n = 60 << 20
		w.Add(&index.Entry{Name: "f", Inode: fslayout.Inode{Mode: unix.S_IFREG, Size: n}, Parts: []index.Part{{Len: n}}}, true)
		for range n / index.MaxExtent {
			w.Digest([32]byte{})
		}
		b.PlainSize = n
	}
	var images ocispec.Index
	if err := readJSON(filepath.Join(layout, "index.json"), &images); err != nil {
		return err
	}
	_, err := reg.PushArtifact(ctx, repo, images.Manifests[0], index.Artifact, index.Join([][]byte{w.Encode(&b)}))
	return err
}

// TestMeasuredNeighbours: images start beside hostile ones that are pulled, of each front end, in at most 1.3 times what they take beside
// as many small honest ones, of 200, and 3 times of 24, which are hostile all at a time: by medians of rounds in turn, of which there are
// more while other work on the machine may be why.
func TestMeasuredNeighbours(t *testing.T) {
	most := float64(testbed.Rounds(30, 13)) / 10
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	s.Configure(fmt.Sprintf("[index]\ntrust = [%q]\n", s.Addr))
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	reg := registry.New(registry.Options{ConfigPath: []string{s.HostsDir}})
	isIndex := func(k int) bool { return k%6 == 0 }
	hostileLayer := func(k int) testbed.Blob {
		if isIndex(k) {
			return testbed.SmallBlob(k)
		}
		return testbed.HostileBlob(k - k/6) // each kind of them, one after the other
	}
	var indexed []string
	publish := func(k int, name, layout string, layer testbed.Blob) error {
		if !isIndex(k) {
			return nil
		}
		indexed = append(indexed, s.Ref(name))
		path, _, _ := strings.Cut(name, ":")
		return indexBomb(t.Context(), reg, k/6, registry.Repository{Host: s.Addr, Path: path}, layout, layer)
	}
	n := testbed.Neighbourhood{Stack: s, Work: t.TempDir(), HonestBytes: 4 << 20}
	starts, crowd, atLeast, atMost := testbed.Rounds(4, 5), testbed.Rounds(24, 200), testbed.Rounds(2, 3), testbed.Rounds(8, 9)
	median := func(all []time.Duration) float64 { return slices.Sorted(slices.Values(all))[len(all)/2].Seconds() }
	var honest, hostile []time.Duration
	ratio := 0.0
	for round := 1; round <= atMost && (round <= atLeast || ratio > most); round++ {
		beside := func(layer func(int) testbed.Blob, all *[]time.Duration) {
			n.Pushed = nil
			if all == &hostile {
				n.Pushed = publish
			}
			times, err := n.Beside(t.Context(), crowd, starts, layer)
			testbed.Must(t, err)
			*all = append(*all, times...)
		}
		if round%2 == 1 {
			beside(testbed.SmallBlob, &honest)
			beside(hostileLayer, &hostile)
		} else {
			beside(hostileLayer, &hostile)
			beside(testbed.SmallBlob, &honest)
		}
		ratio = median(hostile) / median(honest)
		t.Logf("round %d: median of %d starts beside hostile images %.2f s, beside small ones %.2f s, ratio %.2f",
			round, len(hostile), median(hostile), median(honest), ratio)
	}
	if ratio > most {
		t.Errorf("starts beside hostile images take %.2f of what they take beside small honest ones", ratio)
	}
	refused := countLog(t, s, "layer takes the ordinary path") // what hostile layers come to
	refusedIndexes := 0
	for _, ref := range indexed {
		refusedIndexes += min(countLog(t, s, "invalid layer index", ref), 1)
	}
	if t.Logf("%d of %d published indexes were refused", refusedIndexes, len(indexed)); refusedIndexes == 0 {
		t.Error("no published index was refused")
	}
	if t.Logf("%d layers took the ordinary path", refused); refused == 0 {
		t.Error("no layer was refused")
	}
}
