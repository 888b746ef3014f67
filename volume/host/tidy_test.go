package host

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
	"github.com/remora-storage/remora/volume"
)

// TestTidy: a journal is read only when its volume has gone on without it, and one that holds something only once. A read ends with
// its time, and rests in between.
func TestTidy(t *testing.T) {
	st := simstore.New(rand.New(rand.NewPCG(1, 1)))
	if _, err := volume.Init(t.Context(), st, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	head, _, err := volume.Create(t.Context(), st, "data", volume.Spec{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	h, err := Open(Options{Root: t.TempDir(), Journal: 16 << 20, OpenStore: func(string) (store.Store, error) { return st, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	d, err := h.Attach(t.Context(), "sim:", head, AttachOptions{Progress: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.WriteAt(t.Context(), make([]byte, volume.Block), 0), d.Flush(t.Context()), h.Abandon(head.ID)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	reads := 0
	tidies := newTidier(h)
	tidies.rest = func(context.Context, time.Duration) error { reads++; return nil }
	tidy := func(ctx context.Context, wantReads bool, want int, what string) {
		t.Helper()
		reads = 0
		tidies.tidy(ctx)
		if all, err := h.journals.All(); err != nil || len(all) != want || wantReads != (reads > 0) {
			t.Errorf("%s: %d reads, left %+v, %v", what, reads, all, err)
		}
	}
	touch := func() {
		t.Helper()
		all, err := h.journals.All()
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		if err := os.Chtimes(all[0].File, time.Time{}, all[0].Written.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	tidy(ctx, false, 1, "its volume goes on from it")
	var keys []string
	if err := st.List(t.Context(), "v/"+head.ID.String(), func(o store.Object) bool { keys = append(keys, o.Key); return true }); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if err := st.Delete(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	all, err := h.journals.All()
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	f, err := h.journals.OpenStray(all[0])
	if err != nil {
		t.Fatal(err)
	}
	reads = 0
	_, err = volume.ReadJournal(restful{f, func(time.Duration) error { reads++; return nil }}, head.ID, all[0].ID, 0)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	once := reads
	if tidy(ctx, true, 1, "it holds what the store lacks"); reads != once {
		t.Errorf("%d reads of a journal, which has %d", reads, once)
	}
	tidy(ctx, false, 1, "it was read before")
	touch()
	tidies.rest = func(ctx context.Context, _ time.Duration) error { reads++; stop(); <-ctx.Done(); return ctx.Err() }
	tidy(ctx, true, 1, "its time ends")
	if reads != 1 {
		t.Errorf("%d reads, and the time had ended with the first", reads)
	}
	tidy(ctx, false, 1, "there is no time")
	tidies.rest = newTidier(h).rest
	if tidies.tidy(t.Context()); !slices.Contains(slices.Collect(maps.Values(tidies.kept)), true) {
		t.Error("what was not read to its end is not read again")
	}
}
