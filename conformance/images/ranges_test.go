package images_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestRangesEnd: a registry begins to answer ranges with whole blobs while containers read, by an index in the layer or beside it. Whatever
// is missing, and wherever it lies, comes from one whole answer, which is kept; the log says why. New images are imported. When the
// registry serves ranges again, it is asked for them.
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
			other, _ := m.mounted(t, host, kind, 5<<20)
			defer other.Close()
			in, want := m.mounted(t, host, kind, largeLayer)
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
			var served atomic.Int64 // bytes of whole answers
			f := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
				wholeBlob(&countedAnswer{w, &served}, r, pass)
			})
			p.fault.Store(&f)
			for _, off := range []int64{8 << 20, 78 << 20, 1 << 20, 48 << 20} {
				if err := read(off); err != nil {
					t.Errorf("at %d: %v", off, err)
				}
			}
			if _, err := io.Copy(io.Discard, in); err != nil {
				t.Error(err)
			}
			if n := served.Load(); n > 2*largeLayer { // a request for a range, and what finds out that there is none, are cut soon
				t.Errorf("%d bytes were served of a layer of %d", n, largeLayer)
			}
			m.insistOn(t, host, "ctr", kind, "import") // a new image
			p.fault.Store(nil)
			if _, err := io.Copy(io.Discard, other); err != nil {
				t.Error(err)
			}
			says := linesOf(t, s, host)
			for _, what := range []string{"registry host serves no ranges", "registry host serves ranges again"} {
				if !strings.Contains(says, what) {
					t.Errorf("the log does not say %q of %s:\n%s", what, host, says)
				}
			}
		})
	}
}

// countedAnswer is an answer whose bytes are counted.
type countedAnswer struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *countedAnswer) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
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

// largeLayer is how many bytes a layer has of which nobody would read all to have the end.
const largeLayer = 80 << 20

// mounted pulls an image with a layer of so many bytes, which is read by parts, mounts it, and opens the file that the layer has.
func (m *matrix) mounted(t *testing.T, registry, kind string, size int64) (file *os.File, content []byte) {
	t.Helper()
	for try := 0; ; try++ {
		name, layers := m.imageOf(t, kind, size)
		ref := registry + "/" + name
		_, err := m.s.Snapctl(t.Context(), "pull", ref)
		testbed.Must(t, err)
		how := suppliedBy(t, m.s, ref, len(layers))
		if how == matrixKinds[kind] {
			large := m.seeds - 1
			f, err := os.Open(filepath.Join(testbed.MountImage(t, m.s, ref, "remora"), fmt.Sprint("file-", large)))
			testbed.Must(t, err)
			return f, randomBytes(large, size)
		}
		if try == 20 {
			t.Fatalf("layers are %s", how)
		}
		removeAll(t, m.s, ref) // on a busy machine an index may come late
		time.Sleep(time.Second)
	}
}
