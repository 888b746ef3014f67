package snapshotter

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/snapshotter/layers"
	"github.com/remora-storage/remora/snapshotter/start"
)

// What damaged files cost.
var (
	bindingKind = durable.Kind{
		Name: bindingFile,
		Lost: "which layer of which image a snapshot is: containers that have it are named as broken",
		Do: "start the containers again: the snapshot is filled anew; if it is still quarantined in snapctl status, pull an image that has " +
			"its layer; then remove this file",
	}
	databaseKind = durable.Kind{
		Name: databaseFile,
		Lost: "all snapshots that containerd knows of: those of layers are made anew, and containers that run go on",
		Do: "remove the containers of before that have ended, since they do not start again; then remove this file and restart remorad, " +
			"which deletes the directories of the old snapshots that nothing uses",
	}
	instanceKind = durable.Kind{
		Name: instanceFile,
		Lost: "the name of what the holder keeps, unless the holder still said so",
		Do:   "start the containers again that snapctl status names as broken, if it names any; then remove this file",
	}
)

// ListDamaged returns what was set aside below a root of what this package keeps there.
func ListDamaged(root string) ([]durable.Damage, error) {
	all, err := durable.ListDamaged(root, databaseKind, instanceKind, spellsKind, BrokenFile)
	if err != nil {
		return nil, err
	}
	snapshots, err := os.ReadDir(snapshotsOf(root))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	add := func(dir string, k durable.Kind) {
		some, lerr := durable.ListDamaged(filepath.Join(root, dir), k)
		all, err = append(all, some...), errors.Join(err, lerr)
	}
	profiles, lerr := start.ListDamaged(root)
	all, err = append(all, profiles...), errors.Join(err, lerr)
	indexes, ierr := layers.ListDamaged(root)
	all, err = append(all, indexes...), errors.Join(err, ierr)
	for _, e := range snapshots {
		add(filepath.Join(filepath.Base(snapshotsOf(root)), e.Name()), bindingKind)
	}
	return all, err
}
