package images_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestRangesEnd: a registry begins to answer ranges with whole blobs while containers read, by an index in the layer or beside it. What
// lies near the beginning of a layer is read from whole answers; what lies further is EIO, and the log says why. New images are imported.
// When the registry serves ranges again, everything is read.
func TestRangesEnd(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	m := &matrix{s: s}
	proxies := map[string]*faultyProxy{}
	for i, kind := range []string{"lazy", "index"} {
		proxies[kind] = newFaultyProxyOn(t, s, fmt.Sprintf("127.0.1.%d", i+1), false)
	}
	s.Configure(fmt.Sprintf("[index]\ntrust = [%q]\n", proxies["index"].Listener.Addr()))
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	for kind, p := range proxies {
		t.Run(kind, func(t *testing.T) {
			host := p.Listener.Addr().String()
			root, large := m.mounted(t, host, kind)
			want := randomBytes(large, largeLayer)
			in, err := os.Open(filepath.Join(root, fmt.Sprint("file-", large)))
			testbed.Must(t, err)
			defer in.Close()
			read := func(off int64) error {
				got := make([]byte, 64<<10)
				if _, err := in.ReadAt(got, off); err != nil {
					return err
				}
				if !bytes.Equal(got, want[off:][:len(got)]) {
					t.Fatalf("wrong bytes at %d", off)
				}
				return nil
			}
			f := fault(wholeBlob)
			p.fault.Store(&f)
			for _, off := range []int64{8 << 20, 1 << 20, 48 << 20} {
				if err := read(off); err != nil {
					t.Errorf("at %d: %v", off, err)
				}
			}
			if err := read(78 << 20); !errors.Is(err, syscall.EIO) {
				t.Errorf("far into the layer: %v, want EIO", err)
			}
			m.insistOn(t, host, "ctr", kind, "import") // a new image
			p.fault.Store(nil)
			testbed.WaitFor(t, "reads to be right again", func() bool { return read(78<<20) == nil })
			says := linesOf(t, s, host)
			for _, what := range []string{"registry host serves no ranges", "registry host serves ranges again", "more than 64 MiB into it"} {
				if !strings.Contains(says, what) {
					t.Errorf("the log does not say %q of %s:\n%s", what, host, says)
				}
			}
		})
	}
}

// linesOf returns the lines of remorad's log that name a host.
func linesOf(t *testing.T, s *testbed.Stack, host string) (lines string) {
	t.Helper()
	log, err := os.ReadFile(s.RemoradLog())
	testbed.Must(t, err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, host) {
			lines += line
		}
	}
	return lines
}

// largeLayer is how many bytes a layer has of which the end is too far from the beginning.
const largeLayer = 80 << 20

// mounted pulls an image with a large layer, and mounts it. It is read by parts.
func (m *matrix) mounted(t *testing.T, registry, kind string) (root string, large uint64) {
	t.Helper()
	for try := 0; ; try++ {
		name, layers := m.imageOf(t, kind, largeLayer)
		ref := registry + "/" + name
		_, err := m.s.Snapctl(t.Context(), "pull", ref)
		testbed.Must(t, err)
		how := suppliedBy(t, m.s, ref, len(layers))
		if how == matrixKinds[kind] {
			return testbed.MountImage(t, m.s, ref, "remora"), m.seeds - 1
		}
		if try == 20 {
			t.Fatalf("layers are %s", how)
		}
		removeAll(t, m.s, ref) // on a busy machine an index may come late
		time.Sleep(time.Second)
	}
}
