package snapshotter

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export"
	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/internal/durable"
)

// Exports are what mounts of incomplete layers depend on, whatever the ways are by which the kernel reads these. A keeper
// in another process keeps them alive while this one is not there.
type Exports struct {
	ways  []export.Exporter // the one of complete images first
	local *holder.Local     // the keeper, if it is in this process
	log   *slog.Logger
}

// A Site is where ways into the kernel are made.
type Site struct {
	Root string
	// Instance tells what the keeper has of this root from what it has of another: a random number that a root gets with its
	// database. Of another instance, the numbers of exports mean something else.
	Instance string
	Keeper   holder.Keeper
	Log      *slog.Logger
}

// Images returns the directory below which all images of layers lie.
func (s Site) Images() string { return filepath.Join(s.Root, "cache") }

const instanceFile = "instance"

// OpenExports makes the ways into the kernel, takes over what a keeper has kept for the root, and drops what nobody can
// use. A nil keeper keeps nothing beyond this process.
func OpenExports(root string, keeper holder.Keeper, kept map[string][]*os.File, ways func(Site) []export.Exporter,
	log *slog.Logger) (_ *Exports, err error) {
	e := &Exports{log: log}
	if keeper == nil {
		e.local = holder.NewLocal()
		keeper = e.local
	}
	instance, err := instanceOf(root, kept, log)
	if err != nil {
		return nil, err
	}
	if ways != nil {
		e.ways = ways(Site{Root: root, Instance: instance, Keeper: keeper, Log: log})
	}
	defer dropRest(keeper, kept, log)
	for _, w := range e.ways {
		if _, err := w.Take(kept); err != nil {
			log.Warn("exports of an earlier process not taken over", "backend", w.Backend(), "err", err)
		}
	}
	return e, nil
}

// dropRest has the keeper forget what belongs to nobody.
func dropRest(keeper holder.Keeper, kept map[string][]*os.File, log *slog.Logger) {
	for item, files := range kept {
		if err := keeper.Drop(item); err != nil {
			log.Warn("the holder keeps what nobody needs", "item", item, "err", err)
		}
		for _, f := range files {
			f.Close() // only a reference
		}
	}
}

// instanceOf returns the root's instance, a new one if the root has neither a database nor snapshots. Where its file is lost,
// what the keeper has still says it.
func instanceOf(root string, kept map[string][]*os.File, log *slog.Logger) (string, error) {
	path := filepath.Join(root, instanceFile)
	last, err := lastID(root)
	if err != nil {
		return "", err
	}
	_, err = os.Lstat(filepath.Join(root, databaseFile))
	used := err == nil || last > 0
	id := ""
	found, err := durable.Load(path, instanceKind, log, func(p []byte) error {
		if id = string(p); !isInstance(id) {
			return errors.New("it is not what was written")
		}
		return nil
	})
	if err != nil || found == durable.Whole && used {
		return id, err
	}
	id = ""
	if used {
		id = instanceIn(kept)
	}
	if id != "" && found == durable.Absent {
		if err := durable.Miss(path, instanceKind, log, "the holder keeps what it names"); err != nil {
			return "", err
		}
	}
	if id == "" {
		var p [instanceBytes]byte
		rand.Read(p[:]) // never fails
		id = hex.EncodeToString(p[:])
	}
	return id, durable.Replace(path, []byte(id), 0o600)
}

const instanceBytes = 8

func isInstance(s string) bool {
	p, err := hex.DecodeString(s)
	return err == nil && len(p) == instanceBytes
}

// instanceIn returns the one instance that names of what a keeper has contain, "" if there is none or several.
func instanceIn(kept map[string][]*os.File) (id string) {
	for item := range kept {
		if parts := strings.Split(item, "/"); len(parts) > 1 && isInstance(parts[1]) {
			if id != "" && id != parts[1] {
				return ""
			}
			id = parts[1]
		}
	}
	return id
}

// Outlive reports whether mounts outlive this process.
func (e *Exports) Outlive() bool { return e.local == nil }

// inPlace calls use with each way by which the kernel reads image files itself.
func (e *Exports) inPlace(use func(export.InPlace) error) error {
	var errs []error
	for _, w := range e.ways {
		if p, ok := w.(export.InPlace); ok {
			errs = append(errs, use(p))
		}
	}
	return errors.Join(errs...)
}

// Held returns the descriptor of an image file that the kernel reports reads of, if an earlier
// process left one.
func (e *Exports) Held(id string) (held *os.File, err error) {
	err = e.inPlace(func(p export.InPlace) (err error) {
		if held == nil {
			held, err = p.Held(id)
		}
		return err
	})
	return held, err
}

// start serves what was taken over. All bindings have been told of before.
func (e *Exports) start() error { return e.all(export.Exporter.Start) }

// leave stops serving. What is mounted waits for the next process.
func (e *Exports) leave() error { return e.all(export.Exporter.Stop) }

// end takes everything away, for good. Nothing that needs it is mounted any more, or it fails.
func (e *Exports) end() error {
	err := e.all(export.Exporter.End)
	if e.local != nil {
		err = errors.Join(err, e.local.Close())
	}
	return err
}

func (e *Exports) all(do func(export.Exporter) error) error {
	var errs []error
	for _, w := range e.ways {
		errs = append(errs, do(w))
	}
	return errors.Join(errs...)
}

// way returns the Exporter of a back end.
func (e *Exports) way(name blockdev.Backend) (export.Exporter, error) {
	for _, w := range e.ways {
		if w.Backend() == name {
			return w, nil
		}
	}
	return nil, fmt.Errorf("back end %q is not known", name)
}

// mount mounts an incomplete layer.
func (e *Exports) mount(way blockdev.Backend, id uint64, f *cache.File, dir string) error {
	return e.serve(way, id, f, dir)
}

// serve mounts what a device gives of a layer: the layer's image itself, or what passes its reads on.
func (e *Exports) serve(way blockdev.Backend, id uint64, dev blockdev.Device, dir string) error {
	w, err := e.way(way)
	if err != nil {
		return err
	}
	p, err := w.Export(id, dev, export.How{ReadOnly: true})
	if err != nil {
		return err
	}
	if err := p.Mount(dir); err != nil {
		return errors.Join(err, p.Release(), w.Withdraw(context.Background(), id)) // nobody uses it: nothing to wait for
	}
	if err := p.Release(); err != nil {
		e.log.Warn("an export stays after its last use", "backend", way, "number", id, "err", err)
	}
	return nil
}

// expose makes a file of an image's bytes; end takes it away.
func (e *Exports) expose(id uint64, f *cache.File) (path string, end func(), err error) {
	w, err := e.way(blockdev.FuseFile)
	if err != nil {
		return "", nil, err
	}
	p, err := w.Export(id, f, export.How{ReadOnly: true})
	if err != nil {
		return "", nil, err
	}
	return p.String(), func() { e.release(blockdev.FuseFile, id) }, nil
}

// release undoes mount, serve or adopt, after the unmounting.
func (e *Exports) release(way blockdev.Backend, id uint64) {
	w, err := e.way(way)
	if err == nil {
		err = w.Withdraw(context.Background(), id) // of what can be written to nothing is here: nothing to wait for
	}
	if err != nil {
		e.log.Warn("an export stays", "backend", way, "number", id, "err", err)
	}
}

// holds reports whether a mount is one that exports which were taken over depend on.
func (e *Exports) holds(m mounts.Mount) bool {
	for _, w := range e.ways {
		if w.Made(m) == export.Connection {
			return true
		}
	}
	return false
}

// adopt connects a layer that an earlier process mounted with its image, and returns the way by which that was: "" where
// the kernel reads the image file by itself, since it is complete. Its error says why nobody can use the mount.
func (e *Exports) adopt(m mounts.Mount, id uint64, f *cache.File) (way blockdev.Backend, err error) {
	err = errors.New("it is not a mount of ours")
	for _, w := range e.ways {
		if w.Made(m) != export.Export {
			continue
		}
		if err = w.Adopt(id, f); err != nil {
			continue // another way may have made it
		}
		if w.Backend() == "" {
			return "", e.unmark(f)
		}
		return w.Backend(), nil
	}
	return "", err
}

// unmark takes the mark away that an earlier process left on an image which was complete already.
func (e *Exports) unmark(f *cache.File) error {
	return e.inPlace(func(p export.InPlace) error {
		if !p.Marked(f.ID()) {
			return nil
		}
		return p.Complete(f.ID(), f)
	})
}

// complete lets the kernel read a complete image without asking.
func (e *Exports) complete(f *cache.File) error {
	return e.inPlace(func(p export.InPlace) error {
		if !f.Complete() || !p.Knows(f.ID()) {
			return nil
		}
		// A process that comes after this one must know that nothing is missing, since it finds no mark.
		if err := f.Commit(); err != nil {
			return err
		}
		return p.Complete(f.ID(), f)
	})
}

// forget drops an image that is about to be removed.
func (e *Exports) forget(id string) error {
	return e.inPlace(func(p export.InPlace) error { return p.Forget(id) })
}
