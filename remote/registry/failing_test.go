package registry_test

import (
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remora-storage/remora/remote/registry"
)

func mirrored(mirror, origin string) string {
	return fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\"]\n", "http://"+origin, "http://"+mirror)
}

// deadHost returns the address of a host that breaks each connection, and how many there were.
func deadHost(t *testing.T) (addr string, dialled *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dialled = new(atomic.Int64)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dialled.Add(1)
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String(), dialled
}

// TestDeadMirror: of a hundred ranges a dead mirror sees the first two, and one after each of its rests. With many side by side it
// sees what was under way when it failed.
func TestDeadMirror(t *testing.T) {
	for _, side := range []int{1, 24} {
		t.Run(fmt.Sprint(side, " side by side"), func(t *testing.T) {
			mirror, dialled := deadHost(t)
			origin := newServer(t, nil)
			b := blobOn(t, "reg.test", mirrored(mirror, origin.host()), registry.Options{})
			began := time.Now()
			var next atomic.Int64
			var all sync.WaitGroup
			for range side {
				all.Go(func() {
					for i := next.Add(1); i <= 100; i = next.Add(1) {
						if _, err := read(t.Context(), b, int(i)*100, 100); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			took := time.Since(began)
			// A client sends a request again if a connection that it had before breaks, and these are none: a dial each.
			most := int64(side) + 1 + int64(took/time.Second)
			t.Logf("100 ranges within %s: the mirror was dialled %d times, the origin asked %d times", took, dialled.Load(),
				origin.requests.Load())
			if n := dialled.Load(); n < 2 || n > most {
				t.Errorf("the mirror was dialled %d times within %s, want at most %d", n, took, most)
			}
			if n := origin.requests.Load(); n != 100 {
				t.Errorf("the origin was asked %d times", n)
			}
		})
	}
}

// TestMirrorComesBack: a mirror that works again is asked again.
func TestMirrorComesBack(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	mirror := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
		if broken.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
		return broken.Load()
	})
	origin := newServer(t, nil)
	b := blobOn(t, "reg.test", mirrored(mirror.host(), origin.host()), registry.Options{})
	for range 10 {
		wantRange(t, b, 0, 100)
	}
	if n := mirror.requests.Load(); n > 3 {
		t.Errorf("a broken mirror was asked %d times of 10", n)
	}
	broken.Store(false)
	for before := origin.requests.Load(); origin.requests.Load() != before || mirror.requests.Load() < 4; {
		before = origin.requests.Load()
		wantRange(t, b, 0, 100)
		if t.Context().Err() != nil {
			t.Fatal("the mirror is not asked again")
		}
	}
	asked := origin.requests.Load()
	for range 10 {
		wantRange(t, b, 0, 100)
	}
	if n := origin.requests.Load(); n != asked {
		t.Errorf("the origin was asked %d times though the mirror serves", n-asked)
	}
}

// TestSilentMirror: a host that is off costs the first two requests three seconds each, and those soon after nothing.
func TestSilentMirror(t *testing.T) {
	t.Parallel()
	origin := newServer(t, nil)
	b := blobOn(t, "reg.test", mirrored(silentHost(t), origin.host()), registry.Options{Stall: time.Minute})
	for i := 1; ; i++ {
		began := time.Now()
		wantRange(t, b, 0, 100)
		took := time.Since(began)
		t.Logf("request %d took %s", i, took)
		if i <= 2 && took < 2900*time.Millisecond || took > 20*time.Second {
			t.Errorf("request %d took %s", i, took)
		}
		if i > 2 && took < time.Second {
			return
		}
		if i == 6 {
			t.Fatal("the host is never left out") // a slow machine may have let its rest pass, which doubles
		}
	}
}

// TestLackingMirror: a mirror says once that it lacks a blob, and the ranges come from the registry.
func TestLackingMirror(t *testing.T) {
	mirror := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		http.NotFound(w, r)
		return true
	})
	origin := newServer(t, nil)
	b := blobOn(t, "reg.test", mirrored(mirror.host(), origin.host()), registry.Options{})
	for i := range 100 {
		wantRange(t, b, i*100, 100)
	}
	if n := mirror.requests.Load(); n != 1 {
		t.Errorf("the mirror was asked %d times", n)
	}
}
