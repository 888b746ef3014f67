package backoff_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
)

func TestNext(t *testing.T) {
	b := backoff.Backoff{First: 100 * time.Millisecond, Max: 350 * time.Millisecond}
	var got []time.Duration
	var longest []bool
	for range 5 {
		longest = append(longest, b.Longest())
		got = append(got, b.Next())
	}
	ms := time.Millisecond
	if want := []time.Duration{100 * ms, 200 * ms, 350 * ms, 350 * ms, 350 * ms}; !slices.Equal(got, want) {
		t.Errorf("waits %v, want %v", got, want)
	}
	if want := []bool{false, false, true, true, true}; !slices.Equal(longest, want) {
		t.Errorf("longest %v, want %v", longest, want)
	}
}

// TestJitter: waits differ, and each stays between half of what it would be and all of it.
func TestJitter(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 1000 {
		b := backoff.Backoff{First: time.Second, Max: 3 * time.Second, Jitter: true}
		for _, whole := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second} {
			d := b.Next()
			seen[d] = true
			if d < whole/2 || d > whole {
				t.Fatalf("a wait of %v for %v", d, whole)
			}
		}
	}
	if len(seen) < 100 {
		t.Errorf("%d different waits of 4000", len(seen))
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := backoff.Sleep(t.Context(), time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("slept %v for a minute, %v", time.Since(began), err)
		}
		why := errors.New("why")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		began = time.Now()
		if err := backoff.Sleep(ctx, time.Minute); !errors.Is(err, why) || time.Since(began) != time.Second {
			t.Errorf("slept %v beside a context that ends in 1 s, %v", time.Since(began), err)
		}
		if err := backoff.Sleep(ctx, 0); !errors.Is(err, why) {
			t.Errorf("no wait with a context that has ended: %v", err)
		}
	})
}
