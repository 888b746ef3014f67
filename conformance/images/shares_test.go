package images_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

func drip(w http.ResponseWriter, r *http.Request, _ http.Handler) { testbed.Drip(w, r) }

// TestNeighbours: while registries that are silent, that send a byte now and then, or that fail, are asked for more layers than
// may be imported or opened at once, an image of another registry is read remote, all of it, and does not wait for their end.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: "stall_timeout = \"1h\"\n"})
	const badLayers, goodLayers = 24, 4
	dir := t.TempDir()
	for name, seeds := range map[string][]uint64{"bad": seq(0, badLayers), "good": seq(100, goodLayers)} {
		var tars []func(*tar.Writer) error
		for _, seed := range seeds {
			tars = append(tars, randomLayer(seed, 2<<20))
		}
		layout := filepath.Join(dir, name)
		testbed.Must(t, testbed.WriteTars(layout, "src", tars...))
		testbed.Must(t, s.Push(t.Context(), layout, "src", name+":src"))
		convert(t, s, "oci:"+layout+":src", s.Ref(name+":lazy"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var pulls sync.WaitGroup
	var ended atomic.Int64
	for name, f := range map[string]fault{"silent": hang, "drips": drip, "fails": status(http.StatusServiceUnavailable)} {
		var asked atomic.Int64
		p := newFaultyProxy(t, s)
		defer func() { // what remorad still asks for ends, and it comes no more
			p.Listener.Close()
			p.CloseClientConnections()
		}()
		count := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			asked.Add(1)
			f(w, r, pass)
		})
		p.fault.Store(&count)
		for _, tag := range []string{"src", "lazy"} {
			pulls.Go(func() {
				_, _ = s.Snapctl(ctx, "pull", fmt.Sprintf("%s/bad:%s", p.Listener.Addr(), tag)) // it is ended below, or falls back
				ended.Add(1)
			})
		}
		least := int64(badLayers / 2)
		if name == "fails" {
			least = 2 // after which it is left alone
		}
		testbed.WaitFor(t, name+" is asked", func() bool { return asked.Load() >= least })
	}
	for _, tag := range []string{"src", "lazy"} {
		ref := s.Ref("good:" + tag)
		out, err := s.Snapctl(t.Context(), "--json", "pull", ref)
		testbed.Must(t, err)
		var pulled struct {
			Layers []struct{ How, Reason string }
		}
		testbed.Must(t, json.Unmarshal([]byte(out), &pulled))
		for _, l := range pulled.Layers {
			if l.How == "unpacked" {
				t.Errorf("%s: layer is unpacked: %s", ref, l.Reason)
			}
		}
		sameTree(t, s, ref, s.Ref("good:src"), func(string) bool { return false })
	}
	if n := ended.Load(); n >= 6 {
		t.Errorf("all of the others have ended (%d)", n)
	}
	cancel()
	pulls.Wait()
}

func seq(from uint64, n int) (all []uint64) {
	for i := range n {
		all = append(all, from+uint64(i))
	}
	return all
}
