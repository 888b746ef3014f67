package fusefile

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// EachOptions say where the directories of an Each are.
type EachOptions struct {
	Dir      string        // below which each directory is mounted; nothing else is there
	Item     string        // before a slash and the export's number: a directory's name with the keeper
	Keeper   holder.Keeper // nil if the exports end with this process
	Writable bool          // devices that can be written to can be here as well
	Log      *slog.Logger
}

// An Each is a way by which the kernel reads files that FUSE serves, where each export has a directory and a connection of its
// own. Requests that wait for one device fill its own connection, and nobody else's.
type Each struct {
	opts EachOptions

	mu   sync.Mutex // guards the fields below
	ways map[uint64]*Exporter
	used map[uint64]bool // by somebody of this process
	over bool            // what is exported is the next process's
}

var _ export.Exporter = (*Each)(nil)

// NewEach returns an Each without files.
func NewEach(opts EachOptions) *Each {
	return &Each{opts: opts, ways: map[uint64]*Exporter{}, used: map[uint64]bool{}}
}

// Backend implements export.Exporter.
func (e *Each) Backend() blockdev.Backend { return blockdev.FuseFile }

func (e *Each) dir(id uint64) string { return filepath.Join(e.opts.Dir, strconv.FormatUint(id, 10)) }

// File returns the path of an export's file, whether it is there or not.
func (e *Each) File(id uint64) string { return Path(e.dir(id), id) }

// Serves reports whether a path is that of an export's file.
func (e *Each) Serves(path string) bool { return filepath.Dir(filepath.Dir(path)) == e.opts.Dir }

// new returns the way of one export.
func (e *Each) new(id uint64) *Exporter {
	return NewExporter(ExporterOptions{
		Dir: e.dir(id), Item: e.opts.Item + "/" + strconv.FormatUint(id, 10), Keeper: e.opts.Keeper, Writable: e.opts.Writable, Log: e.opts.Log,
	})
}

// of returns the way of an export that is there, nil if there is none.
func (e *Each) of(id uint64) *Exporter {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ways[id]
}

// all returns all ways. last says that there are to be no others.
func (e *Each) all(last bool) []*Exporter {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = e.over || last
	all := make([]*Exporter, 0, len(e.ways))
	for _, w := range e.ways {
		all = append(all, w)
	}
	return all
}

// Export implements export.Exporter.
func (e *Each) Export(id uint64, dev blockdev.Device, how export.How) (export.Path, error) {
	w := e.new(id)
	e.mu.Lock()
	over := e.over
	if !over {
		e.ways[id], e.used[id] = w, true
	}
	e.mu.Unlock()
	if over {
		return nil, export.ErrOver
	}
	p, err := w.Export(id, dev, how)
	if err != nil {
		return nil, errors.Join(err, e.end(id))
	}
	return p, nil
}

// Adopt implements export.Exporter.
func (e *Each) Adopt(id uint64, dev blockdev.Device) error {
	w := e.of(id)
	if w == nil {
		return export.ErrLost
	}
	err := w.Adopt(id, dev)
	if err == nil {
		e.mu.Lock()
		e.used[id] = true
		e.mu.Unlock()
	}
	return err
}

// Withdraw implements export.Exporter. The export's connection ends.
func (e *Each) Withdraw(_ context.Context, id uint64) error { return e.end(id) }

// end takes an export's directory away, whoever mounted it.
func (e *Each) end(id uint64) error {
	e.mu.Lock()
	w := e.ways[id]
	delete(e.ways, id)
	delete(e.used, id)
	e.mu.Unlock()
	if w == nil {
		w = e.new(id)
	}
	err := w.End()
	if rerr := os.Remove(e.dir(id)); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// Made implements export.Exporter.
func (e *Each) Made(m mounts.Mount) export.Made {
	for _, w := range e.all(false) {
		if made := w.Made(m); made != export.NotMade {
			return made
		}
	}
	return export.NotMade
}

// Take implements export.Life. A connection that cannot be taken over is its own export's trouble, and no other's.
func (e *Each) Take(kept map[string][]*os.File) (taken bool, err error) {
	for item := range kept {
		number, ok := strings.CutPrefix(item, e.opts.Item+"/")
		id, perr := strconv.ParseUint(number, 10, 64)
		if !ok || perr != nil {
			continue
		}
		w := e.new(id)
		taken, err := w.Take(kept)
		if err != nil {
			e.opts.Log.Error("an export of an earlier process is not taken over", "number", id, "err", err)
		}
		if taken {
			e.mu.Lock()
			e.ways[id] = w
			e.mu.Unlock()
		}
	}
	return len(e.all(false)) > 0, nil
}

// Start implements export.Life. Whatever an earlier process left that nobody has adopted ends: that process was killed before it gave
// the connection to the keeper, or before it took it away.
func (e *Each) Start() error {
	e.endUnused()
	for _, w := range e.all(false) {
		if err := w.Start(); err != nil {
			e.opts.Log.Error("an export of an earlier process is not served", "dir", w.opts.Dir, "err", err)
		}
	}
	return nil
}

func (e *Each) endUnused() {
	unused, err := e.left()
	if err != nil {
		e.opts.Log.Warn("exports of an earlier process may stay", "dir", e.opts.Dir, "err", err)
	}
	e.mu.Lock()
	for id := range e.ways {
		unused = append(unused, id) // somebody may have removed its directory
	}
	slices.Sort(unused)
	unused = slices.DeleteFunc(slices.Compact(unused), func(id uint64) bool { return e.used[id] })
	e.mu.Unlock()
	for _, id := range unused {
		if err := e.end(id); err != nil {
			e.opts.Log.Warn("an export of an earlier process stays, which nobody uses", "dir", e.dir(id), "err", err)
		}
	}
}

// left returns the exports that have directories, whoever made them.
func (e *Each) left() (ids []uint64, err error) {
	entries, err := os.ReadDir(e.opts.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, l := range entries {
		if id, err := strconv.ParseUint(l.Name(), 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// Stop implements export.Life.
func (e *Each) Stop() error {
	all := e.all(true)
	errs := make([]error, len(all))
	var stopped sync.WaitGroup
	for i, w := range all {
		stopped.Go(func() { errs[i] = w.Stop() })
	}
	stopped.Wait()
	return errors.Join(errs...)
}

// End implements export.Life.
func (e *Each) End() error {
	left, err := e.left()
	for _, id := range left {
		err = errors.Join(err, e.end(id))
	}
	if rerr := os.Remove(e.opts.Dir); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
