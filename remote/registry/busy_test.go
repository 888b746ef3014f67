package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

// busyHosts answer as each is told to, and count what they are asked.
type busyHosts struct {
	r     *Registry
	says  map[string]*http.Response
	asked map[string]int
}

func newBusyHosts() *busyHosts {
	return &busyHosts{r: New(Options{}), says: map[string]*http.Response{}, asked: map[string]int{}}
}

// ask asks as requests of a blob do: with a place at the host, which hears what it answers.
func (b *busyHosts) ask(ctx context.Context, host docker.RegistryHost) error {
	pace := b.r.pace(host.Host)
	release, err := pace.enter(ctx, host.Host, "origin.test")
	if err != nil {
		return err
	}
	defer release()
	b.asked[host.Host]++
	resp := b.says[host.Host]
	if resp == nil {
		return nil
	}
	pace.answered("origin.test", resp, time.Now())
	return &StatusError{Host: host.Host, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}
}

// turn has a blob asked for, and returns how long that took.
func (b *busyHosts) turn(t *testing.T, hosts ...string) (took time.Duration, err error) {
	t.Helper()
	began := time.Now()
	_, err = b.r.ask(t.Context(), turnOf("sha256:one", hosts...), b.ask)
	return time.Since(began), err
}

// TestBusyMirror: who may ask another host does not wait for a mirror that answers 429. The mirror is asked again when its time, which
// is bounded, has passed.
func TestBusyMirror(t *testing.T) {
	for _, c := range []struct {
		after string
		rests time.Duration
	}{{"7", 7 * time.Second}, {"", firstPause}, {"86400", maxAfter}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBusyHosts()
			b.says["mirror.test"] = answer(429, c.after)
			for range 50 {
				if took, err := b.turn(t, "mirror.test", "origin.test"); err != nil || took != 0 {
					t.Fatalf("after %s, %v", took, err)
				}
			}
			time.Sleep(c.rests - time.Millisecond)
			if took, err := b.turn(t, "mirror.test", "origin.test"); err != nil || took != 0 || b.asked["mirror.test"] != 1 {
				t.Errorf("after %s, %v; asked %v", took, err, b.asked)
			}
			time.Sleep(time.Millisecond)
			b.says["mirror.test"] = nil
			if _, err := b.turn(t, "mirror.test", "origin.test"); err != nil || b.asked["mirror.test"] != 2 || b.asked["origin.test"] != 51 {
				t.Errorf("%v; asked %v", err, b.asked)
			}
		})
	}
}

// TestBusyMirrorIsWaitedFor: a mirror's time is waited for where no other host serves, whatever that says; of two, the sooner is.
func TestBusyMirrorIsWaitedFor(t *testing.T) {
	for _, c := range []struct {
		name   string
		origin *http.Response
		hosts  []string
		took   time.Duration
		asked  int // the origin, after the mirror's answer
	}{
		{"alone", nil, []string{"mirror.test"}, 7 * time.Second, 0},
		{"the registry refuses", answer(401, ""), []string{"mirror.test", "origin.test"}, 7 * time.Second, 1},
		{"the registry fails", answer(500, ""), []string{"mirror.test", "origin.test"}, 7 * time.Second, 1},
		{"the registry lacks it", answer(404, ""), []string{"mirror.test", "origin.test"}, 7 * time.Second, 1},
		{"the registry is busy, too", answer(429, "3"), []string{"mirror.test", "origin.test"}, 3 * time.Second, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBusyHosts()
				b.says["mirror.test"], b.says["origin.test"] = answer(429, "7"), c.origin
				if _, err := b.turn(t, c.hosts...); err == nil {
					t.Fatal("served by nobody")
				}
				b.says["mirror.test"] = nil
				if c.took < 7*time.Second {
					b.says["origin.test"] = nil
				}
				b.asked = map[string]int{}
				took, err := b.turn(t, c.hosts...)
				if err != nil || took != c.took || b.asked["origin.test"] != c.asked {
					t.Errorf("after %s, %v; asked %v", took, err, b.asked)
				}
			})
		})
	}
}

// TestFewerForAMirror: a mirror that has said that it is asked too much gets fewer requests, and the others go on to the next host.
func TestFewerForAMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBusyHosts()
		b.says["mirror.test"] = answer(429, "1")
		if _, err := b.turn(t, "mirror.test", "origin.test"); err != nil {
			t.Fatal(err)
		}
		b.says["mirror.test"] = nil
		time.Sleep(time.Second)
		release, err := b.r.pace("mirror.test").enter(t.Context(), "mirror.test", "origin.test") // it has one now
		if err != nil {
			t.Fatal(err)
		}
		if took, err := b.turn(t, "mirror.test", "origin.test"); err != nil || took != 0 || b.asked["origin.test"] != 2 {
			t.Errorf("after %s, %v; asked %v", took, err, b.asked)
		}
		release()
		if _, err := b.turn(t, "mirror.test", "origin.test"); err != nil || b.asked["mirror.test"] != 2 {
			t.Errorf("%v; asked %v", err, b.asked)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.r.ask(ctx, turnOf("", "mirror.test", "origin.test"), func(ctx context.Context, _ docker.RegistryHost) error {
			return context.Cause(ctx)
		}); !errors.Is(err, context.Canceled) {
			t.Errorf("who leaves gets %v", err)
		}
	})
}

// TestBusyStore: the same where a mirror leads to a store that is asked too much: the store hears of it once.
func TestBusyStore(t *testing.T) {
	body := bytes.Repeat([]byte("remora"), 1000)
	var stored, origin atomic.Int64
	serve := func(f http.HandlerFunc) string {
		s := httptest.NewServer(f)
		t.Cleanup(s.Close)
		return s.URL
	}
	store := serve(func(w http.ResponseWriter, _ *http.Request) {
		stored.Add(1)
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	mirror := serve(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, store+r.URL.Path, http.StatusTemporaryRedirect)
	})
	registry := serve(func(w http.ResponseWriter, r *http.Request) {
		origin.Add(1)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
	root := t.TempDir()
	toml := "server = \"" + registry + "\"\n[host.\"" + mirror + "\"]\n  capabilities = [\"pull\"]\n"
	if err := errors.Join(os.Mkdir(filepath.Join(root, "reg.test"), 0o755),
		os.WriteFile(filepath.Join(root, "reg.test", "hosts.toml"), []byte(toml), 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), maxAfter/2) // what waits for the store takes longer
	defer cancel()
	b := New(Options{ConfigPath: []string{root}}).Blob(Repository{"reg.test", "app"}, digest.FromBytes(body), int64(len(body)))
	for i := range int64(20) {
		got := make([]byte, 100)
		if _, err := b.ReadAt(ctx, got, i*100); err != nil || !bytes.Equal(got, body[i*100:][:100]) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if stored.Load() != 1 || origin.Load() != 20 {
		t.Errorf("the store was asked %d times, the registry %d times", stored.Load(), origin.Load())
	}
}
