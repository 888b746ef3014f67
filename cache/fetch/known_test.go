package fetch

import (
	"context"
	"fmt"
	"io"
	"testing"
)

type placed string

func (p placed) Place() (host, user string) { return string(p), "" }

func (placed) Open(context.Context, int64, int64, int) (io.ReadCloser, error) { return nil, io.EOF }

// TestKnownPlaces: what is counted of places is bounded, however many are named, and a ticket survives that its place is
// forgotten.
func TestKnownPlaces(t *testing.T) {
	var s scheds
	first := s.enter(placed("first"), demand)
	for i := range knownPlaces + 50 {
		s.enter(placed(fmt.Sprint(i)), background).release()
	}
	if n := s.all.Len(); n != knownPlaces {
		t.Errorf("%d places are remembered", n)
	}
	if err := first.wait(t.Context()); err != nil {
		t.Error(err)
	}
	first.release()
	if one, again := s.at("77"), s.at("77"); one != again {
		t.Error("a place is two")
	}
}

// TestRequestsAreShared: a user of a host whose requests never end leaves some to the others, of every kind, and those that
// wait take turns.
func TestRequestsAreShared(t *testing.T) {
	granted := func(tickets []*ticket) (n int) {
		for _, t := range tickets {
			select {
			case <-t.granted:
				n++
			default:
			}
		}
		return n
	}
	enter := func(s *sched, user string, p priority, n int) (all []*ticket) {
		for range n {
			all = append(all, s.enter(user, p))
		}
		return all
	}
	for _, c := range []struct {
		prio              priority
		hog, second, late int // requests that run of a hundred of the first, a hundred of the second, and then two of the third
	}{{demand, maxDemandOfOne, 6, 1}, {prefetch, maxPrefetchOfOne, 3, 1}} {
		s := newSched()
		hog, second, late := enter(s, "hog", c.prio, 100), enter(s, "second", c.prio, 100), enter(s, "late", c.prio, 2)
		if granted(hog) != c.hog || granted(second) != c.second || granted(late) != c.late {
			t.Errorf("%s: %d, %d and %d run", c.prio, granted(hog), granted(second), granted(late))
		}
		for _, one := range late {
			one.release()
		}
		for _, one := range second {
			one.release()
		}
		if again := enter(s, "second", c.prio, 6); granted(again) == 0 {
			t.Errorf("%s: nothing was given back", c.prio)
		}
		for _, one := range hog {
			one.release()
		}
	}
	s := newSched()
	busy := enter(s, "busy", background, 50)
	other := enter(s, "other", background, 1)
	busy[0].release()
	if granted(other) != 1 {
		t.Error("it waits behind another user's requests")
	}
}
