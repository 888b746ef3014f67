package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

const (
	honestLayers = 4
	honestBytes  = 4 << 20 // a layer
	hogLayers    = 24      // of an image of a registry that does not serve: more than may be imported, or opened, at once
	manyHostile  = 200
	manyHonest   = 5
	pullsAtOnce  = 8
	hogsAtLeast  = 4 // requests that wait at a registry before the others start: the last of three has a small share
)

// neighbours measures starts of images beside registries that do not serve, and beside images that do harm: a pull, a mount, and
// reading all of it.
func neighbours(ctx context.Context, o options) (err error) {
	n := &neighbourhood{o: o}
	if n.s, err = testbed.NewStack(filepath.Join(o.work, "neighbours"), testbed.Options{LogLevel: "warn"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.s.Close()) }()
	return errors.Join(n.registries(ctx), n.images(ctx))
}

type neighbourhood struct {
	o    options
	s    *testbed.Stack
	made int
}

// image pushes an image of its own, gzip or converted, and returns its reference.
func (n *neighbourhood) image(ctx context.Context, converted bool, layers ...func(*tar.Writer) error) (string, error) {
	n.made++
	name := fmt.Sprintf("own%d:1", n.made)
	layout := filepath.Join(n.o.work, "own")
	defer os.RemoveAll(layout)
	if err := testbed.WriteTars(layout, "src", layers...); err != nil {
		return "", err
	}
	if converted {
		_, err := n.s.Snapctl(ctx, "convert", "oci:"+layout+":src", n.s.Ref(name))
		return n.s.Ref(name), err
	}
	return n.s.Ref(name), n.s.Push(ctx, layout, "src", name)
}

// honest pushes an image that is to be started.
func (n *neighbourhood) honest(ctx context.Context, converted bool) (string, error) {
	var layers []func(*tar.Writer) error
	for range honestLayers {
		layers = append(layers, randomFile(fmt.Sprint("f", rand.Uint64()), honestBytes))
	}
	return n.image(ctx, converted, layers...)
}

func randomFile(name string, size int64) func(*tar.Writer) error {
	return func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		var key [32]byte
		copy(key[:], name)
		_, err := io.CopyN(tw, rand.NewChaCha8(key), size)
		return err
	}
}

// start returns how long a pull, a mount and reading everything take.
func (n *neighbourhood) start(ctx context.Context, ref string) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(n.o.work, "root-")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := n.s.Snapctl(ctx, "pull", ref); err != nil {
		return 0, err
	}
	if _, err := n.s.Ctr(ctx, "images", "mount", "--snapshotter", "remora", ref, dir); err != nil {
		return 0, err
	}
	_, err = testbed.Output(ctx, nil, "tar", "-cf", "/dev/null", "--checkpoint=100000", dir)
	took = time.Since(began)
	return took, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
}

// registries measures starts beside a silent registry, one that drips and one that answers 503.
func (n *neighbourhood) registries(ctx context.Context) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "\nStarts beside registries that do not serve (%d layers pulled from each), median of %d.\n", hogLayers, n.o.rounds)
	fmt.Fprintln(out, "image\talone, ms\tbeside them, ms\tratio")
	for _, converted := range []bool{false, true} {
		alone, err := n.starts(ctx, converted)
		if err != nil {
			return err
		}
		end, err := n.hogs(ctx, converted)
		if err != nil {
			return err
		}
		beside, err := n.starts(ctx, converted)
		end()
		if err := errors.Join(err, n.s.RestartRemorad(syscall.SIGTERM)); err != nil { // what was begun there ends
			return err
		}
		fmt.Fprintf(out, "%s\t%d\t%d\t%.2f\n", kindOf(converted), alone.Milliseconds(), beside.Milliseconds(), beside.Seconds()/alone.Seconds())
	}
	return out.Flush()
}

// starts returns the median of some starts of images that are new.
func (n *neighbourhood) starts(ctx context.Context, converted bool) (time.Duration, error) {
	var times []time.Duration
	for range n.o.rounds {
		ref, err := n.honest(ctx, converted)
		if err != nil {
			return 0, err
		}
		took, err := n.start(ctx, ref)
		if err != nil {
			return 0, err
		}
		times = append(times, took)
	}
	return median(times), nil
}

func kindOf(converted bool) string {
	if converted {
		return "eStargz"
	}
	return "gzip, imported"
}

// hogs has an image pulled from each of three registries that do not serve, and returns once requests wait there. end stops all.
func (n *neighbourhood) hogs(ctx context.Context, converted bool) (end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: n.s.Addr})
	var servers []*httptest.Server
	var pulls sync.WaitGroup
	end = func() {
		cancel()
		pulls.Wait()
		for _, s := range servers {
			s.Listener.Close() // or remorad comes again
			s.CloseClientConnections()
			s.Close()
		}
	}
	for _, fault := range []func(http.ResponseWriter, *http.Request){silent, testbed.Drip, unavailable} {
		var layers []func(*tar.Writer) error
		for range hogLayers {
			layers = append(layers, randomFile(fmt.Sprint("f", rand.Uint64()), 3<<20))
		}
		ref, err := n.image(ctx, converted, layers...)
		if err != nil {
			end()
			return nil, err
		}
		var asked atomic.Int64
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				pass.ServeHTTP(w, r)
				return
			}
			asked.Add(1)
			fault(w, r)
		}))
		servers = append(servers, srv)
		addr := srv.Listener.Addr().String()
		if err := n.s.PlainHTTP(addr, addr); err != nil {
			end()
			return nil, err
		}
		pulls.Go(func() { _, _ = n.s.Snapctl(ctx, "pull", strings.Replace(ref, n.s.Addr, addr, 1)) }) // it is ended, or falls back
		for began := time.Now(); asked.Load() < hogsAtLeast; time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				end()
				return nil, fmt.Errorf("only %d requests came to a registry that does not serve", asked.Load())
			}
		}
	}
	return end, nil
}

func silent(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func unavailable(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusServiceUnavailable)
}

// images measures starts while many hostile images are pulled, and while as many small honest ones are.
func (n *neighbourhood) images(ctx context.Context) error {
	fmt.Printf("\nMedian of %d starts a round while %d images are pulled, %d at a time.\n", manyHonest, manyHostile, pullsAtOnce)
	kinds := []struct {
		name string
		blob func(k int) testbed.Blob
	}{{"small honest ones", smallBlob}, {"hostile ones", hostileBlob}}
	times := make([][]time.Duration, len(kinds))
	for range n.o.rounds {
		for i, kind := range kinds {
			some, err := n.beside(ctx, kind.blob)
			if err != nil {
				return err
			}
			times[i] = append(times[i], some...)
		}
	}
	for i, kind := range kinds {
		fmt.Printf("%s: %d ms\n", kind.name, median(times[i]).Milliseconds())
	}
	fmt.Printf("ratio: %.2f\n", median(times[1]).Seconds()/median(times[0]).Seconds())
	return nil
}

func (n *neighbourhood) beside(ctx context.Context, blob func(k int) testbed.Blob) (times []time.Duration, err error) {
	var crowd []string
	for range manyHostile {
		n.made++
		name, layout := fmt.Sprintf("own%d:1", n.made), filepath.Join(n.o.work, "crowd")
		err := errors.Join(testbed.WriteBlobs(layout, "src", blob(n.made)), n.s.Push(ctx, layout, "src", name), os.RemoveAll(layout))
		if err != nil {
			return nil, err
		}
		crowd = append(crowd, n.s.Ref(name))
	}
	var honest []string
	for range manyHonest {
		ref, err := n.honest(ctx, true)
		if err != nil {
			return nil, err
		}
		honest = append(honest, ref)
	}
	todo := make(chan string)
	var pulled atomic.Int64
	var pulls sync.WaitGroup
	for range pullsAtOnce {
		pulls.Go(func() {
			for ref := range todo {
				_, _ = n.s.Snapctl(ctx, "pull", ref) // hostile ones fail
				pulled.Add(1)
			}
		})
	}
	pulls.Go(func() {
		defer close(todo)
		for _, ref := range crowd {
			todo <- ref
		}
	})
	for i, ref := range honest {
		for pulled.Load() < int64(10+i*manyHostile/manyHonest) {
			time.Sleep(10 * time.Millisecond)
		}
		var took time.Duration
		if took, err = n.start(ctx, ref); err != nil {
			break
		}
		times = append(times, took)
	}
	pulls.Wait()
	return times, err
}

func smallBlob(k int) testbed.Blob {
	return packed(func(tw *tar.Writer) error { return randomFile(fmt.Sprint("small", k), 64<<10)(tw) })
}

// hostileBlob is a small layer that takes much, or breaks what reads it.
func hostileBlob(k int) testbed.Blob {
	switch k % 4 {
	case 0:
		return packed(func(tw *tar.Writer) error { return linkBomb(tw, k) })
	case 1: // zeros, a thousand times what it packs to
		return packed(func(tw *tar.Writer) error {
			err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint("zeros", k), Typeflag: tar.TypeReg, Mode: 0o644, Size: 32 << 20})
			if err != nil {
				return err
			}
			_, err = tw.Write(make([]byte, 32<<20))
			return err
		})
	case 2: // it ends in the middle
		b := smallBlob(k)
		b.Data = b.Data[:len(b.Data)/2]
		return b
	}
	no := fmt.Appendf(nil, "no layer at all %d", k)
	return testbed.Blob{MediaType: ocispec.MediaTypeImageLayerGzip, Data: no, DiffID: digest.FromBytes(no)}
}

// linkBomb asks for hundreds of thousands of directories that nobody lists, by links through a long path.
func linkBomb(tw *tar.Writer, k int) error {
	list := []tar.Header{{Name: "s", Typeflag: tar.TypeSymlink, Linkname: strings.TrimSuffix(strings.Repeat("a/", 2047), "/")},
		{Name: fmt.Sprint("own", k), Typeflag: tar.TypeReg}}
	for i := range 100 {
		list = append(list, tar.Header{Name: fmt.Sprintf("%d/s", i), Typeflag: tar.TypeLink, Linkname: "s"},
			tar.Header{Name: fmt.Sprintf("%d/s/f", i), Typeflag: tar.TypeReg})
	}
	for _, h := range list {
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
	}
	return nil
}

func packed(write func(*tar.Writer) error) testbed.Blob {
	var plain, small bytes.Buffer
	tw, z := tar.NewWriter(&plain), gzip.NewWriter(&small)
	err := errors.Join(write(tw), tw.Close())
	sum := digest.FromBytes(plain.Bytes())
	_, werr := z.Write(plain.Bytes())
	if err := errors.Join(err, werr, z.Close()); err != nil {
		panic(err) // nothing here can fail
	}
	return testbed.Blob{MediaType: ocispec.MediaTypeImageLayerGzip, Data: small.Bytes(), DiffID: sum}
}
