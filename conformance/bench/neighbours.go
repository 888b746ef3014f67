package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
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

	"github.com/remora-storage/remora/conformance/testbed"
)

const (
	honestBytes = 4 << 20 // a layer
	hogLayers   = 24      // of an image of a registry that does not serve: more than may be imported, or opened, at once
	manyHostile = 200
	manyHonest  = 5
	hogsAtLeast = 4 // requests that wait at a registry before the others start: the last of three has a small share
)

// neighbours measures starts of images beside registries that do not serve, and beside images that do harm: a pull, a mount, and
// reading all of it.
func neighbours(ctx context.Context, o options) (err error) {
	s, err := testbed.NewStack(filepath.Join(o.work, "neighbours"), testbed.Options{LogLevel: "warn"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	n := &neighbourhood{testbed.Neighbourhood{Stack: s, Work: o.work, HonestBytes: honestBytes}, o}
	return errors.Join(n.registries(ctx), n.images(ctx))
}

type neighbourhood struct {
	testbed.Neighbourhood
	o options
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
		if err := errors.Join(err, n.Stack.RestartRemorad(syscall.SIGTERM)); err != nil { // what was begun there ends
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
		ref, err := n.Honest(ctx, converted)
		if err != nil {
			return 0, err
		}
		took, err := n.Start(ctx, ref)
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
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: n.Stack.Addr})
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
			layers = append(layers, testbed.RandomFile(fmt.Sprint("f", rand.Uint64()), 3<<20))
		}
		ref, err := n.Image(ctx, converted, layers...)
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
		if err := n.Stack.PlainHTTP(addr, addr); err != nil {
			end()
			return nil, err
		}
		pulls.Go(func() { _, _ = n.Stack.Snapctl(ctx, "pull", strings.Replace(ref, n.Stack.Addr, addr, 1)) }) // it is ended, or falls back
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
	fmt.Printf("\nMedian of %d starts a round while %d images are pulled, %d at a time.\n", manyHonest, manyHostile, testbed.PullsTogether)
	kinds := []struct {
		name string
		blob func(k int) testbed.Blob
	}{{"small honest ones", testbed.SmallBlob}, {"hostile ones", testbed.HostileBlob}}
	times := make([][]time.Duration, len(kinds))
	for range n.o.rounds {
		for i, kind := range kinds {
			some, err := n.Beside(ctx, manyHostile, manyHonest, kind.blob)
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
