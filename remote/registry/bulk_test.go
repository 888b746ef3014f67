package registry_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/remote/registry"
)

// TestProofBeforeBulk: behind 200 requests for whole layers of as many repositories, and the 64 that the host has, a proof is the
// next request that it gets; and so many proofs that there is always one hold up no layer for more than three of them.
func TestProofBeforeBulk(t *testing.T) {
	const under = 64 // of one registry
	arrived := make(chan string, 1000)
	next := make(chan struct{}) // lets one bulk request end
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		arrived <- strings.Split(r.URL.Path, "/")[2]
		if strings.HasPrefix(r.URL.Path, "/v2/bulk") {
			<-next
		}
		return false
	})
	end := sync.OnceFunc(func() { close(next) })
	defer end() // or the server waits for them
	root := hostsDir(t, "reg.test", plain(s.host()))
	reg := registry.New(registry.Options{ConfigPath: []string{root}, Stall: time.Hour, Retry: registry.Retry{Attempts: 1}})
	var all sync.WaitGroup
	read := func(ctx context.Context, repo string, n int64) {
		all.Go(func() {
			blob := reg.Blob(registry.Repository{Host: "reg.test", Path: repo}, digest.FromBytes(data), int64(len(data)))
			r, err := blob.Open(ctx, 0, n, 0)
			if err != nil {
				t.Error(err)
				return
			}
			_, err = io.Copy(io.Discard, r)
			if err != nil || r.Close() != nil {
				t.Error(err)
			}
		})
	}
	bulk := func(i int) { read(t.Context(), fmt.Sprint("bulk", i, "/app"), int64(len(data))) }
	for i := range under + 200 {
		bulk(i)
	}
	for range under {
		if got := <-arrived; !strings.HasPrefix(got, "bulk") {
			t.Fatal(got)
		}
	}
	registry.AwaitBulk(reg, s.host(), 200, 0)
	proof := func(n int) { read(registry.BeforeBulk(t.Context()), fmt.Sprint("proof", n), 512) }
	proof(0)
	registry.AwaitBulk(reg, s.host(), 200, 1)
	next <- struct{}{}
	if got := <-arrived; got != "proof0" {
		t.Errorf("the next request was %s", got)
	}
	if got := <-arrived; !strings.HasPrefix(got, "bulk") { // in the proof's place
		t.Errorf("after the proof came %s", got)
	}
	for n := range 30 {
		proof(n + 1)
	}
	registry.AwaitBulk(reg, s.host(), 199, 30)
	next <- struct{}{}
	row, proofs := 0, 0
	for proofs < 30 {
		if got := <-arrived; strings.HasPrefix(got, "bulk") {
			row = 0
			next <- struct{}{} // its place goes to the next
			continue
		}
		proofs++
		if row++; row > 3 {
			t.Errorf("%d proofs in a row", row)
		}
	}
	end()
	all.Wait()
}
