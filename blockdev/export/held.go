package export

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// A Connecting is a mounted file system by which the kernel reaches us.
type Connecting interface {
	Start() error     // serves what an earlier process mounted
	Kept() []*os.File // what another process keeps of it
	Stop() error      // leaves it to the next process
	Unmount() error   // ends it
}

// HeldOptions say what a Held is.
type HeldOptions[C Connecting] struct {
	Dir  string // where it is mounted
	Type string // the type of file system that the kernel shows there
	Item string // its name with the keeper
	// Keeper keeps it while no process of ours is there; nil if it ends with this process.
	Keeper holder.Keeper
	// Mount makes a connection and serves it.
	Mount func() (C, error)
	// Adopt makes one of what Kept returned to an earlier process. The files are its own from then on.
	Adopt func(files []*os.File) (C, error)
}

// A Held is a connection that the first who needs it makes, or that was taken over, and that a keeper holds. It is the Life
// of the ways that share it.
type Held[C Connecting] struct {
	opts HeldOptions[C]

	mu      sync.Mutex // guards the fields below
	conn    C
	has     bool // there is a connection
	started bool // it is served
	over    bool // it is the next process's: nothing begins any more
}

// NewHeld returns a Held without a connection.
func NewHeld[C Connecting](opts HeldOptions[C]) *Held[C] { return &Held[C]{opts: opts} }

// Take implements Life. What somebody has unmounted stays in kept.
func (h *Held[C]) Take(kept map[string][]*os.File) (taken bool, err error) {
	files := kept[h.opts.Item]
	h.mu.Lock()
	defer h.mu.Unlock()
	if files == nil || h.has {
		return h.has, nil
	}
	all, err := mounts.Own()
	if err != nil {
		return false, err
	}
	for _, m := range all {
		if !h.is(m) {
			continue
		}
		delete(kept, h.opts.Item)
		if h.conn, err = h.opts.Adopt(files); err != nil {
			return false, err
		}
		h.has = true
		return true, nil
	}
	return false, nil
}

func (h *Held[C]) is(m mounts.Mount) bool { return m.Dir == h.opts.Dir && m.Type == h.opts.Type }

// Get returns the connection, and makes it if there is none.
func (h *Held[C]) Get() (conn C, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.over:
		return conn, ErrOver
	case h.has:
		return h.conn, nil
	}
	if err := blockdev.FreshDir(h.opts.Dir); err != nil {
		return conn, err
	}
	made, err := h.opts.Mount()
	if err != nil {
		return conn, err
	}
	if h.opts.Keeper != nil {
		if err := h.opts.Keeper.Put(h.opts.Item, made.Kept()...); err != nil {
			return conn, errors.Join(fmt.Errorf("give the connection of %s to the holder: %w", h.opts.Dir, err), made.Unmount())
		}
	}
	h.conn, h.has, h.started = made, true, true
	return made, nil
}

// Has returns the connection if there is one.
func (h *Held[C]) Has() (C, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conn, h.has
}

// Made says Connection of the connection's own mount.
func (h *Held[C]) Made(m mounts.Mount) Made {
	if _, has := h.Has(); has && h.is(m) {
		return Connection
	}
	return NotMade
}

// Start implements Life.
func (h *Held[C]) Start() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.has || h.started {
		return nil
	}
	h.started = true
	return h.conn.Start()
}

// Stop implements Life. What was never started is left as it is.
func (h *Held[C]) Stop() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	if !h.has || !h.started {
		return nil
	}
	return h.dropLocked().Stop()
}

// End implements Life.
func (h *Held[C]) End() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var dropped error
	if h.opts.Keeper != nil { // it may have what could not be taken over
		dropped = h.opts.Keeper.Drop(h.opts.Item)
	}
	if !h.has {
		return errors.Join(dropped, blockdev.Unmount(h.opts.Dir))
	}
	return errors.Join(dropped, h.dropLocked().Unmount())
}

// dropLocked returns the connection, which is nobody's any more.
func (h *Held[C]) dropLocked() C {
	conn := h.conn
	var none C
	h.conn, h.has, h.started = none, false, false
	return conn
}
