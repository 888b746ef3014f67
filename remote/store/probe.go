package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
)

// Probe races conditional puts against a Store under keys below prefix, and fails with ErrUnsafe, saying what went
// wrong, if it does not keep a Store's promises: of puts that race, exactly one may win; a version that was replaced
// must be refused; what was stored or deleted must be seen at once. It proves nothing where it finds nothing, but the
// usual faults of servers show at once: conditions that are ignored, that are compared before the body has come, or
// that hold for each of the server's processes alone. What it stores it deletes again. progress is told each step.
func Probe(ctx context.Context, s Store, prefix string, progress func(step string)) error {
	var run [6]byte
	rand.Read(run[:]) // never fails
	if h, ok := As[*Hedge](s); ok {
		s = h.Store // who won is to be told, not whether it is there
	}
	p := probe{s: s, prefix: prefix + hex.EncodeToString(run[:]) + "/"}
	defer p.clean(context.WithoutCancel(ctx))
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"put, get, head, list, delete", p.plain},
		{"conditions one after another", p.conditions},
		{"puts if absent, racing, small", func(ctx context.Context) error { return p.raceAbsent(ctx, probeRounds, 100) }},
		{"puts if absent, racing, large", func(ctx context.Context) error { return p.raceAbsent(ctx, 2, probeLarge) }},
		{"puts if unchanged, racing, small", func(ctx context.Context) error { return p.raceMatch(ctx, probeRounds, 100) }},
		{"puts if unchanged, racing, large", func(ctx context.Context) error { return p.raceMatch(ctx, 2, probeLarge) }},
	} {
		progress(step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %s: %w", s, step.name, err)
		}
	}
	return nil
}

const (
	probeRacers = 8
	probeRounds = 6
	probeLarge  = 1 << 20 // bytes
)

type probe struct {
	s      Store
	prefix string

	mu   sync.Mutex // guards n
	n    int
	keys []string
}

func (p *probe) key() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	k := fmt.Sprintf("%s%d", p.prefix, p.n)
	p.keys = append(p.keys, k)
	return k
}

// clean deletes what was stored. What cannot be deleted stays: it does no harm.
func (p *probe) clean(ctx context.Context) {
	for _, k := range p.keys {
		_ = p.s.Delete(ctx, k)
	}
}

func unsafe(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsafe, fmt.Sprintf(format, args...))
}

// refused says what it means that a put came back with err where it had to be refused with want.
func refused(err, want error, what string) error {
	switch {
	case err == nil:
		return unsafe("%s was not refused", what)
	case errors.Is(err, want):
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (p *probe) plain(ctx context.Context) error {
	k, want := p.key(), []byte("0123456789")
	if _, err := p.s.Put(ctx, k, want); err != nil {
		return err
	}
	got, o, err := p.s.Get(ctx, k, 0, -1)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) || o.Size != int64(len(want)) || o.Version == "" {
		return unsafe("got %q of %d bytes, version %q, for %q", got, o.Size, o.Version, want)
	}
	if got, _, err = p.s.Get(ctx, k, 3, 4); err != nil {
		return err
	} else if string(got) != "3456" {
		return unsafe("bytes 3 to 6 are %q", got)
	}
	if h, err := p.s.Head(ctx, k); err != nil {
		return err
	} else if h.Version != o.Version {
		return unsafe("head says version %q, get %q", h.Version, o.Version)
	}
	if seen, err := p.listed(ctx, k); err != nil {
		return err
	} else if !seen {
		return unsafe("what was stored is not listed")
	}
	if err := p.s.Delete(ctx, k); err != nil {
		return err
	}
	_, _, err = p.s.Get(ctx, k, 0, -1)
	if err := refused(err, ErrNoObject, "reading what was deleted"); err != nil {
		return err
	}
	if seen, err := p.listed(ctx, k); err != nil {
		return err
	} else if seen {
		return unsafe("what was deleted is still listed")
	}
	return p.s.Delete(ctx, k)
}

func (p *probe) listed(ctx context.Context, key string) (seen bool, err error) {
	err = p.s.List(ctx, p.prefix, func(o Object) bool {
		seen = seen || o.Key == key
		return true
	})
	return seen, err
}

func (p *probe) conditions(ctx context.Context) error {
	k := p.key()
	first, err := p.s.PutIfAbsent(ctx, k, []byte("first"))
	if err != nil {
		return err
	}
	_, err = p.s.PutIfAbsent(ctx, k, []byte("other"))
	if err := refused(err, ErrExists, "a put if absent over an object"); err != nil {
		return err
	}
	second, err := p.s.PutIfMatch(ctx, k, []byte("second"), first.Version)
	if err != nil {
		return err
	}
	if second.Version == first.Version {
		return unsafe("two contents have the version %s", first.Version)
	}
	_, err = p.s.PutIfMatch(ctx, k, []byte("third"), first.Version)
	if err := refused(err, ErrChanged, "a put over a version that was replaced"); err != nil {
		return err
	}
	got, _, err := p.s.Get(ctx, k, 0, -1)
	if err != nil {
		return err
	}
	if string(got) != "second" {
		return unsafe("the object is %q after a put that was refused", got)
	}
	_, err = p.s.PutIfMatch(ctx, p.key(), []byte("none"), first.Version)
	return refused(err, ErrChanged, "a put if unchanged without an object")
}

// race has racers put at the same time and returns who was told that it won.
func (p *probe) race(key string, size int, put func(racer int, body []byte) error, lost error) (winners []int, err error) {
	errs := make([]error, probeRacers)
	var started sync.WaitGroup
	begin := make(chan struct{})
	for i := range probeRacers {
		body := bytes.Repeat([]byte{byte('a' + i)}, size)
		started.Go(func() {
			<-begin
			errs[i] = put(i, body)
		})
	}
	close(begin)
	started.Wait()
	for i, e := range errs {
		switch {
		case e == nil:
			winners = append(winners, i)
		case !errors.Is(e, lost):
			err = e // busy, perhaps: the race may still be judged
		}
	}
	return winners, err
}

// judge compares what is there after a race with who was told that it won.
func (p *probe) judge(ctx context.Context, key string, winners []int, err error) error {
	if len(winners) > 1 {
		return unsafe("%d of %d racing puts were told that they won", len(winners), probeRacers)
	}
	got, _, gerr := p.s.Get(ctx, key, 0, -1)
	switch {
	case len(winners) == 0 && err == nil:
		return unsafe("none of %d racing puts won", probeRacers)
	case len(winners) == 0:
		return err
	case gerr != nil:
		return gerr
	case len(got) == 0 || got[0] != byte('a'+winners[0]) || bytes.Count(got, got[:1]) != len(got):
		return unsafe("racing put %d was told that it won, but another's bytes are there", winners[0])
	}
	return nil
}

func (p *probe) raceAbsent(ctx context.Context, rounds, size int) error {
	for range rounds {
		k := p.key()
		winners, err := p.race(k, size, func(_ int, body []byte) error {
			_, err := p.s.PutIfAbsent(ctx, k, body)
			return err
		}, ErrExists)
		if err := p.judge(ctx, k, winners, err); err != nil {
			return err
		}
	}
	return nil
}

func (p *probe) raceMatch(ctx context.Context, rounds, size int) error {
	k := p.key()
	o, err := p.s.Put(ctx, k, []byte("begin"))
	if err != nil {
		return err
	}
	for range rounds {
		winners, err := p.race(k, size, func(_ int, body []byte) error {
			_, err := p.s.PutIfMatch(ctx, k, body, o.Version)
			return err
		}, ErrChanged)
		if err := p.judge(ctx, k, winners, err); err != nil {
			return err
		}
		if o, err = p.s.Put(ctx, k, []byte("again")); err != nil {
			return err
		}
	}
	return nil
}
