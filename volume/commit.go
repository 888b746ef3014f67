package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// pump commits what is uploaded, in order, and has checkpoints made.
func (v *Volume) pump(ctx context.Context) {
	for ctx.Err() == nil && v.failed() == nil {
		gens, cp := v.ready()
		if len(gens) > 0 || cp != nil {
			if err := v.commit(ctx, gens, cp); err != nil && ctx.Err() == nil {
				v.fail(err)
			}
			continue
		}
		if v.journal.throttled() == ThrottleJournal || v.journal.owes() {
			if err := v.journal.relieve(); err != nil {
				v.fail(err)
			}
		}
		v.mu.Lock()
		v.sealLocked()
		v.checkpointLocked()
		pause := time.Hour
		if !v.active.oldest.IsZero() && v.maySealLocked() {
			pause = max(v.maxAgeLocked()-time.Since(v.active.oldest), time.Millisecond)
		}
		v.mu.Unlock()
		if v.journal.owes() {
			pause = min(pause, time.Second)
		}
		t := time.NewTimer(pause)
		select {
		case <-v.kick:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// ready returns the generations that can be committed: uploaded, and all before them too.
func (v *Volume) ready() (gens []*generation, cp *checkpoint) {
	v.mu.Lock()
	defer v.mu.Unlock()
	cp = v.due
	n := len(v.head.Tail)
	if cp != nil {
		n -= len(cp.segments)
	}
	for _, g := range v.sealed {
		if !g.uploaded || n > 0 && n+len(g.segments) > maxTail {
			break // a checkpoint makes room
		}
		n += len(g.segments)
		gens = append(gens, g)
	}
	return gens, cp
}

// commit has the head name generations, and a checkpoint if there is one.
func (v *Volume) commit(ctx context.Context, gens []*generation, cp *checkpoint) error {
	if err := v.update(ctx, func(h *Head) error {
		if err := v.wait.until(ctx, "hold the lease", func() error { return v.lease.Wait(ctx) }); err != nil {
			return err
		}
		v.life.claim(h)
		if cp != nil {
			h.Root = &cp.ref
			h.Tail = h.Tail[len(cp.segments):]
		}
		for _, g := range gens {
			h.Tail = append(h.Tail, g.segments...)
			h.Write = g.cut
			if k := len(g.segments); k > 0 {
				h.Segment = g.segments[k-1].Seq
			}
			h.meets(g.end)
		}
		return nil
	}, func() {
		v.life.claimedLocked()
		if cp != nil {
			v.root, v.due, v.frozen, v.making = cp.root, nil, nil, false
			for _, s := range cp.segments {
				delete(v.tailSegs, s.Seq)
			}
		}
		for _, g := range gens {
			for _, s := range g.segments {
				v.tailSegs[s.Seq] = s
			}
			for _, e := range g.located {
				v.tail.setNewer(e)
			}
			v.committed = g.cut
		}
		v.sealed = v.sealed[len(gens):]
		v.stats.Commits++
		v.sealLocked()
		v.progressLocked()
	}); err != nil {
		return err
	}
	if cp != nil {
		v.spawn(func(ctx context.Context) { v.collect(ctx, cp) })
	}
	if len(gens) == 0 {
		return nil
	}
	// Whoever found a block's place in the journal before the index changed has read it when this is passed.
	v.reuse.Lock()
	end := gens[len(gens)-1].end
	v.reuse.Unlock()
	return v.journal.release(end)
}

// update changes the head. apply is called with v.mu held when the store has it. Others may change a head that this
// node owns, if they leave the owner and the log alone: change is made anew over theirs. A log that is not as this node has left it
// was written by another copy of this process, such as that of a machine which was restored with its memory, or the store was put
// back: this node has lost the volume.
func (v *Volume) update(ctx context.Context, change func(*Head) error, apply func()) error {
	if v.updating.Acquire(ctx, 1) != nil { // one change at a time: what is known of the head never goes back
		return context.Cause(ctx)
	}
	defer v.updating.Release(1)
	for {
		v.mu.RLock()
		old, version, unsure := v.head, v.version, v.unsure
		v.mu.RUnlock()
		next := old.clone()
		if err := change(next); err != nil {
			return err
		}
		next.next()
		current, at, swapped, err := swapHead(ctx, v.opts.Store, old, next, version, v.wait)
		if err != nil {
			v.mu.Lock()
			v.unsure = append(v.unsure, next)
			v.mu.Unlock()
			return err
		}
		if swapped {
			if current.Nonce != next.Nonce && (!current.sameOwner(next) || next.departs(current) != "") {
				// Somebody has taken it since, with this change in it. The next one will be refused.
				current, at = next, ""
			}
			v.mu.Lock()
			v.head, v.version, v.unsure = current, at, nil // what was sent before can no longer be carried out
			apply()
			v.mu.Unlock()
			return nil
		}
		if r := current.Released; r != nil && slices.ContainsFunc(unsure, func(h *Head) bool {
			return h.Owner == nil && h.Released.Nonce == r.Nonce
		}) {
			return nil // the volume was given up by a change whose caller did not wait for its end
		}
		// A change whose caller did not wait for its end may have been carried out.
		mine := slices.ContainsFunc(unsure, func(h *Head) bool { return current.sameOwner(h) && h.departs(current) == "" })
		if !current.sameOwner(old) && !mine {
			return fmt.Errorf("epoch %d, this node's is %d: %w", current.Epoch, old.Epoch, ErrFenced)
		}
		what := old.departs(current)
		if what != "" && !mine {
			return fencing("the head is not what this node has left: " + what +
				". A copy of this machine writes to the volume, or the store was put back to an earlier state")
		}
		v.mu.Lock()
		v.head, v.version = current, at
		v.mu.Unlock()
	}
}

// fencing is an ErrFenced by something else than another node's taking the volume.
type fencing string

func (f fencing) Error() string { return string(f) }

// Is implements errors.Is.
func (f fencing) Is(err error) bool { return err == ErrFenced }

const (
	leafBytes  = 12 << 10 // of a leaf, about
	extentCost = 128      // bytes of memory that an extent of the tail takes, about
)

// checkpointLocked begins a checkpoint if one is due.
func (v *Volume) checkpointLocked() {
	if v.making || v.err != nil || len(v.head.Tail) == 0 {
		return
	}
	var size int64
	for _, s := range v.head.Tail {
		size += int64(s.Size)
	}
	n := len(v.head.Tail)
	// A checkpoint of a large map rewrites most of its nodes if writes are spread: it waits for more of them, so
	// that the map's bytes stay few beside theirs.
	estimate := min(int64(v.tail.len())*leafBytes, v.mapBytesLocked())
	due := n >= checkpointTail || size >= checkpointSize
	must := n >= maxTail*3/4 || size >= 4*checkpointSize || int64(v.tail.len())*extentCost > v.opts.Memory/4
	if must || due && size >= 8*estimate {
		v.startCheckpointLocked()
	}
}

func (v *Volume) mapBytesLocked() (n int64) {
	for _, k := range v.root.Packs {
		n += k.Live
	}
	return n
}

// startCheckpointLocked makes a checkpoint of the whole tail.
func (v *Volume) startCheckpointLocked() {
	v.making = true
	v.frozen, v.tail = v.tail, &extents{}
	h, root, frozen := v.head, v.root, v.frozen
	v.spawn(func(ctx context.Context) {
		cp, err := makeCheckpoint(ctx, v.nodes, root, h.Root, h.Gen+1, h.Write, h.Tail, frozen, v.put)
		v.mu.Lock()
		defer v.wake()
		defer v.mu.Unlock()
		if err != nil {
			if ctx.Err() == nil {
				v.log.Error("no checkpoint can be made: the volume works until its log is full", "err", err)
				v.waiting["make a checkpoint"] = waitState{err, time.Now()}
			}
			return // making stays: the log is as it was, and reads find frozen
		}
		v.due = cp
		v.stats.Map += cp.uploaded
	})
}

// collect deletes what a checkpoint has left without a reference. The head that does not name it is durable, and
// deleting it is final: keys are never used again. What it does not get to, a sweep finds.
func (v *Volume) collect(ctx context.Context, cp *checkpoint) {
	var keys []string
	for _, s := range cp.gone {
		keys = append(keys, s.key(v.id))
	}
	for _, k := range cp.packs {
		keys = append(keys, k.key(v.id))
	}
	for _, key := range keys {
		if err := v.wait.until(ctx, "delete", func() error { return v.opts.Store.Delete(ctx, key) }); err != nil {
			if ctx.Err() == nil && !errors.Is(err, context.Canceled) {
				v.log.Warn("an object that nothing uses stays", "key", key, "err", err)
			}
			return
		}
		v.opts.Cache.Drop(key)
	}
}
