package node

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/remora-storage/remora/volume"
)

// world is a machine, and what a world that does as it is told makes of its effects.
type world struct {
	m       machine
	stop    bool // what is under way was told to stop
	began   int  // callers so far
	waiting []caller
}

func (w world) clone() world {
	w.m.callers, w.waiting = slices.Clone(w.m.callers), slices.Clone(w.waiting)
	return w
}

// key tells worlds apart whose future differs. Callers of one kind are alike.
func (w world) key() string {
	kinds := map[string]int{}
	for _, c := range w.m.callers {
		kinds[fmt.Sprint(c.want, c.how)]++
	}
	return fmt.Sprint(w.m.owned, w.m.device, w.m.half, w.m.want, w.m.doing, w.m.how, w.m.stopped, w.m.stuck != nil, w.stop, kinds)
}

var errWorld = errors.New("the world does not let it")

// after applies an event and checks all that must hold whatever the events are.
func (w world) after(t *testing.T, event string, how func(m *machine) []effect) world {
	t.Helper()
	w = w.clone()
	before := w.m.doing
	effects := how(&w.m)
	began := false
	for _, e := range effects {
		switch {
		case e.begin != nothing:
			if began {
				t.Fatalf("%s: two things begin", event)
			}
			began, w.stop = true, false
			switch e.begin {
			case open:
				must(t, event, !w.m.owned && w.m.want == attached)
			case export:
				must(t, event, w.m.owned && !w.m.device && !w.m.half && w.m.want == attached)
			case withdraw:
				must(t, event, w.m.device && w.m.want != attached)
			case leave, abandon: // never under a device
				must(t, event, w.m.owned && !w.m.device && (w.m.want != attached || e.begin == leave && w.m.half))
			}
		case e.stop:
			must(t, event, w.m.doing == open || w.m.doing == leave)
			w.stop = true
		default:
			i := slices.IndexFunc(w.waiting, func(c caller) bool { return c.n == e.answer })
			if i < 0 {
				t.Fatalf("%s: caller %d is answered who does not wait", event, e.answer)
			}
			if c := w.waiting[i]; e.err == nil && c.want == attached {
				must(t, event, w.m.owned && w.m.device && w.m.want == attached)
			} else if e.err == nil {
				must(t, event, !w.m.owned && !w.m.device)
			}
			w.waiting = slices.Delete(w.waiting, i, i+1)
		}
	}
	must(t, event+": callers are those who wait", slices.EqualFunc(w.waiting, w.m.callers, func(a, b caller) bool { return a.n == b.n }))
	if w.m.doing == nothing { // it rests: all are answered, and it is as it was wanted
		must(t, event, len(w.waiting) == 0)
		must(t, event, w.m.want != attached || w.m.owned && w.m.device)
		must(t, event, w.m.want == attached || !w.m.device && (!w.m.owned || w.m.stuck != nil))
	}
	if before != nothing && w.m.doing != before && w.m.doing != nothing {
		must(t, event+": one thing at a time", began)
	}
	return w
}

func must(t *testing.T, event string, is bool) {
	t.Helper()
	if !is {
		t.Fatalf("after %s: not so", event)
	}
}

// TestEveryOrder looks at every order of verbs, callers that leave, and ends of what is under way, with up to three callers at a
// time, from a volume that is not there, and from what an earlier process can have left.
func TestEveryOrder(t *testing.T) {
	t.Parallel()
	starts := []world{{}, {m: machine{owned: true, device: true, want: attached}}}
	settling := world{m: machine{owned: true}}
	starts = append(starts, settling.after(t, "a start without a device", func(m *machine) []effect { return m.settle(nil) }))
	seen := map[string]bool{}
	for _, s := range starts {
		seen[s.key()] = true
	}
	type step struct {
		name string
		w    world
	}
	var queue []step
	for _, s := range starts {
		queue = append(queue, step{"start", s})
	}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		try := func(event string, how func(m *machine) []effect, prepare func(*world)) {
			w := at.w.clone()
			if prepare != nil {
				prepare(&w)
			}
			name := at.name + ", " + event
			if w = w.after(t, name, how); !seen[w.key()] {
				seen[w.key()] = true
				queue = append(queue, step{name, w})
			}
		}
		if len(at.w.waiting) < 3 {
			for _, c := range []caller{
				{want: attached}, {want: attached, how: How{AcceptLoss: true}}, {want: detached}, {want: abandoned},
			} {
				c.n = at.w.began + 1
				try(fmt.Sprintf("call %d %v", c.want, c.how.AcceptLoss), func(m *machine) []effect { return m.call(c) },
					func(w *world) { w.began++; w.waiting = append(w.waiting, c) })
			}
		}
		for i, c := range at.w.waiting {
			try("a caller leaves", func(m *machine) []effect { return m.left(c.n) },
				func(w *world) { w.waiting = slices.Delete(w.waiting, i, i+1) })
		}
		if at.w.m.doing == nothing {
			continue
		}
		ends := []error{nil, errWorld}
		if at.w.m.doing == open {
			ends = append(ends, volume.ErrHalfTaken)
		}
		if at.w.stop && at.w.m.doing == leave {
			ends = append(ends, ErrHalfLeft)
			if !at.w.m.half {
				ends = append(ends, ErrKept)
			}
		}
		for _, err := range ends {
			try(fmt.Sprintf("%d ends (%v)", at.w.m.doing, err), func(m *machine) []effect { return m.ended(err) }, nil)
		}
	}
	t.Logf("%d states", len(seen))
	if len(seen) < 200 {
		t.Errorf("only %d states were reached", len(seen))
	}
}
