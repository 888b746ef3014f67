package node

import (
	"errors"
	"slices"

	"github.com/remora-storage/remora/volume"
)

// want is what was asked of a volume last.
type want int

const (
	detached  want = iota
	attached       // owned by this node, with a block device
	abandoned      // as detached, but what the store lacks stays in this node's journal
)

// action is a thing to be done with a volume.
type action int

const (
	nothing  action = iota
	open            // take the volume for this node
	export          // give the kernel its block device
	withdraw        // take the device away, unless somebody uses it
	leave           // give the volume up when its store has everything
	abandon         // give it up with the rest in the journal
)

// Errors of those whose verb was overtaken by another one.
var (
	// ErrAttachedAgain says that a volume was not given up because somebody attached it meanwhile.
	ErrAttachedAgain = errors.New("it was attached again meanwhile")
	// ErrDetachedMeanwhile says that a volume was not attached because somebody detached it meanwhile.
	ErrDetachedMeanwhile = errors.New("it was detached meanwhile")
	// ErrKept is what Hands.Leave returns if it was stopped while the volume could still be kept, and was.
	ErrKept = errors.New("not given up")
	// ErrHalfLeft is what Hands.Leave returns if it was stopped and nobody knows whether the store has released the volume.
	ErrHalfLeft = errors.New("half given up")
)

// machine is what is known of one volume. Its methods are what happens to it; they return what has to be done about that.
type machine struct {
	owned  bool // this node has taken the volume, and did not give it up
	device bool // the kernel has its device
	half   bool // it does not work, and its store may say that it is not this node's

	want    want
	doing   action
	how     How   // of doing, if that is open
	stopped bool  // doing was told that it is not wanted
	stuck   error // why the volume could not be given up; somebody has to ask again
	callers []caller
}

// How a volume is attached.
type How struct {
	// AcceptLoss takes a volume whose last owner's journal may have flushed writes that the store lacks.
	AcceptLoss bool
}

// caller is somebody who waits for an answer.
type caller struct {
	n    int // tells callers apart
	want want
	how  How
}

// effect is what a step wants done: an action begun, the one under way stopped, or a caller answered.
type effect struct {
	begin  action
	how    How
	stop   bool
	answer int // the caller's n, 0 for none
	err    error
}

// next is what has to be done.
func (m *machine) next() action {
	switch {
	case m.want == attached && !m.owned:
		return open
	case m.want == attached && m.half: // first it must be known whose it is
		return leave
	case m.want == attached && !m.device:
		return export
	case m.want == attached:
		return nothing
	case m.device:
		return withdraw
	case m.owned && m.want == abandoned:
		return abandon
	case m.owned:
		return leave
	}
	return nothing
}

// call is a verb. n is above 0, and no other caller has it.
func (m *machine) call(c caller) []effect {
	m.callers = append(m.callers, c)
	if c.want != detached || m.want != abandoned { // whoever abandons does not wait for the store because another one would have
		m.want = c.want
	}
	m.stuck = nil
	return m.settle(nil)
}

// left says that a caller does not wait any longer.
func (m *machine) left(n int) []effect {
	m.callers = slices.DeleteFunc(m.callers, func(c caller) bool { return c.n == n })
	waits := slices.ContainsFunc(m.callers, func(c caller) bool { return c.want == attached })
	if m.want == attached && !waits && (!m.owned || !m.device) {
		m.want = detached
	}
	return m.settle(nil)
}

// ended says how what was under way ended.
func (m *machine) ended(err error) (out []effect) {
	was, stopped := m.doing, m.stopped
	m.doing, m.stopped = nothing, false
	switch {
	case was == open && err == nil:
		m.owned = true
	case was == open && stopped && !errors.Is(err, volume.ErrHalfTaken): // whoever wants it by now has not had a try of his own
	case was == open:
		if errors.Is(err, volume.ErrHalfTaken) {
			if m.owned, m.half = true, true; stopped {
				break
			}
		}
		// Nor has who accepts what this try did not.
		out = m.answer(err, func(c caller) bool { return c.want == attached && (c.how == m.how || m.how.AcceptLoss) })
		if m.want == attached && !slices.ContainsFunc(m.callers, func(c caller) bool { return c.want == attached }) {
			m.want = detached
		}
	case was == export && err == nil:
		m.device = true
	case was == export:
		out = m.answer(err, isAttach)
		if m.want == attached {
			m.want = detached
		}
	case was == withdraw && err == nil:
		m.device = false
	case was == withdraw: // it is in use
		out = m.answer(err, isDetach)
		m.want = attached
	case err == nil: // left, or abandoned
		m.owned, m.half = false, false
		out = m.answer(nil, isDetach)
	case stopped && errors.Is(err, ErrKept):
		if m.want == attached {
			out = m.answer(ErrAttachedAgain, isDetach)
		}
	case stopped && errors.Is(err, ErrHalfLeft):
		m.half = true
	default:
		out = m.answer(err, func(c caller) bool { return m.half || isDetach(c) })
		m.stuck = err
		if m.half && m.want == attached {
			m.want = detached
		}
	}
	return m.settle(out)
}

func isAttach(c caller) bool { return c.want == attached }
func isDetach(c caller) bool { return c.want != attached }

// answer answers some of those who wait.
func (m *machine) answer(err error, whom func(caller) bool) (out []effect) {
	m.callers = slices.DeleteFunc(m.callers, func(c caller) bool {
		if whom(c) {
			out = append(out, effect{answer: c.n, err: err})
			return true
		}
		return false
	})
	return out
}

// settle adds what follows from what is known to out.
func (m *machine) settle(out []effect) []effect {
	if m.want != attached { // it is going, or will not come
		out = append(out, m.answer(ErrDetachedMeanwhile, isAttach)...)
	}
	act := m.next()
	switch {
	case m.doing == open && m.want != attached, (m.doing == leave) && act != leave:
		if m.stopped {
			return out
		}
		m.stopped = true
		return append(out, effect{stop: true})
	case m.doing != nothing:
		return out
	case act == nothing && m.want == attached:
		// What a detach wanted is not to be had: it was overtaken before it began.
		return append(append(out, m.answer(nil, isAttach)...), m.answer(ErrAttachedAgain, isDetach)...)
	case act == nothing:
		return append(out, m.answer(nil, isDetach)...)
	case m.stuck != nil && (act == leave || act == abandon):
		return append(out, m.answer(m.stuck, isDetach)...)
	}
	m.doing = act
	e := effect{begin: act}
	if act == open {
		for _, c := range m.callers {
			e.how.AcceptLoss = e.how.AcceptLoss || c.want == attached && c.how.AcceptLoss
		}
		m.how = e.how
	}
	return append(out, e)
}
