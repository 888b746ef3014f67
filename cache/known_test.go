package cache

import (
	"context"
	"fmt"
	"io"
	"testing"
)

type placed string

func (p placed) Place() string { return string(p) }

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
