package node_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/node"
)

// work is jobs on one volume that end when they are told to.
type work struct {
	all  *node.Attachments
	id   volume.ID
	ends chan error
	did  []string // the jobs that have begun
}

func (w *work) run(what string, told *[]string) func(context.Context) error {
	return func(ctx context.Context) error {
		j := node.Job{What: what, Do: func(_ context.Context, say func(string)) error {
			w.did = append(w.did, what)
			say(what)
			return <-w.ends
		}}
		return w.all.Run(ctx, w.id, j, func(what string) { *told = append(*told, what) })
	}
}

// TestJobs: callers of one job share it and hear of it from its beginning; it is nobody's, and jobs of one volume follow each other.
func TestJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &work{node.New(), volume.NewID(), make(chan error), nil}
		var first, second, other []string
		one := begin(w.run("mounted", &first))
		two := begin(w.run("mounted", &second))
		three := begin(w.run("unmounted", &other))
		four := begin(w.run("grown", &other))
		one.stop()
		one.ends(t, context.Canceled)
		four.stop()
		four.ends(t, context.Canceled)
		two.waits(t)
		three.waits(t)
		full := errors.New("no room")
		w.ends <- full
		two.ends(t, full)
		if !slices.Equal(first, []string{"mounted"}) || !slices.Equal(second, first) {
			t.Errorf("the callers were told %q and %q", first, second)
		}
		three.waits(t)
		w.ends <- nil
		three.ends(t, nil)
		if want := []string{"mounted", "unmounted"}; !slices.Equal(w.did, want) {
			t.Errorf("done: %q, want %q", w.did, want)
		}
		left := begin(w.run("grown", &other))
		w.all.Close()
		if synctest.Wait(); len(left.err) == 0 || <-left.err == nil {
			t.Error("a caller waits for a job that goes on without this process, or takes it for done")
		}
		w.ends <- nil
	})
}

// TestJobsKeepDevices: a device is withdrawn when nothing is done with what is on it, and nothing is begun while it is.
func TestJobsKeepDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bed{newHands(), node.New(), volume.NewID()}
		defer b.all.Close()
		v := begin(b.attach)
		b.opens <- nil
		v.ends(t, nil)
		w := &work{b.all, b.id, make(chan error), nil}
		var told []string
		mount := begin(w.run("mounted", &told))
		away := begin(b.detach)
		b.is(t, "withdrawing")
		if slices.Contains(b.did, "withdraw") {
			t.Error("the device was withdrawn under a job")
		}
		w.ends <- nil
		mount.ends(t, nil)
		b.is(t, "leaving")
		b.leaves <- nil
		away.ends(t, nil)
	})
}

// TestJobsOfAbandoned: whoever abandons a volume does not wait for jobs that wait for its store: neither for the one under way, also
// where a detach waits for it already, nor for one that comes next.
func TestJobsOfAbandoned(t *testing.T) {
	for name, detach := range map[string]bool{"abandoned": false, "detached first": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := bed{newHands(), node.New(), volume.NewID()}
				defer b.all.Close()
				v := begin(b.attach)
				b.opens <- nil
				v.ends(t, nil)
				job := func(what string) verb {
					return begin(func(ctx context.Context) error {
						return b.all.Run(ctx, b.id, node.Job{What: what, Do: func(ctx context.Context, _ func(string)) error {
							b.mu.Lock()
							gone := slices.Contains(b.did, "withdraw")
							b.mu.Unlock()
							if gone {
								return node.ErrDetachedMeanwhile
							}
							<-ctx.Done() // as a Note or a Store waits while the store is away
							return ctx.Err()
						}}, func(string) {})
					})
				}
				mounted, grown := job("mounted"), job("grown")
				if detach {
					away := begin(b.detach)
					away.waits(t)
					defer away.ends(t, nil)
				}
				mounted.waits(t)
				begin(b.abandon).ends(t, nil)
				mounted.ends(t, context.Canceled)
				if synctest.Wait(); len(grown.err) == 0 || <-grown.err == nil {
					t.Error("a job for which there is no volume goes on")
				}
			})
		})
	}
}
