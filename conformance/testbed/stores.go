package testbed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/remote/store/s3store"
	"github.com/remora-storage/remora/volume"
)

// WalkStore walks everything that a store of volumes has: each volume by its Check, data included. It is an error if an object belongs
// to none of them, and is not one that outlives volumes: the store's mark, nodes' leases, and what is known of events.
func WalkStore(ctx context.Context, st store.Store) error {
	var names []string
	var errs []error
	there := map[string]bool{}
	err := volume.List(ctx, st, func(name string, h *volume.Head, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
			return
		}
		names = append(names, name)
		there[h.ID.String()] = true
	})
	errs = append(errs, err)
	for _, name := range names {
		r, err := volume.Check(ctx, st, name, true, func(string) {})
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
			continue
		}
		for _, p := range r.Problems {
			errs = append(errs, fmt.Errorf("volume %s: %s", name, p))
		}
	}
	err = st.List(ctx, "", func(o store.Object) bool {
		kind, rest, _ := strings.Cut(o.Key, "/")
		id, _, _ := strings.Cut(rest, "/")
		outlives := o.Key == store.MarkKey || kind == "name" || kind == "node" || kind == "audit"
		if !outlives && (kind != "v" || !there[id]) {
			errs = append(errs, fmt.Errorf("%s is of no volume", o.Key))
		}
		return true
	})
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", st, err)
	}
	return nil
}

// usedStores are the stores in which a stack's clients made volumes.
type usedStores struct {
	mu   sync.Mutex // guards urls
	urls map[string]bool
}

// note takes down the store of a command of snapctl that succeeded.
func (u *usedStores) note(args []string) {
	if len(args) < 3 || args[0] != "volume" {
		return
	}
	url := ""
	switch i := slices.Index(args, "--store"); {
	case args[1] == "init":
		url = args[len(args)-1]
	case (args[1] == "create" || args[1] == "bench") && i >= 0 && i+1 < len(args):
		url = args[i+1]
	default:
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.urls == nil {
		u.urls = map[string]bool{}
	}
	u.urls[url] = true
}

var credentialsOf = regexp.MustCompile(`(?m)^credentials = "(.*)"$`)

// walk walks all of them, and each must be there. The configuration is remorad's, which has their credentials.
func (u *usedStores) walk(config string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var errs []error
	for _, url := range slices.Sorted(maps.Keys(u.urls)) {
		st, err := openStore(url, config)
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			_, err = volume.StoreID(ctx, st)
			if err == nil {
				err = WalkStore(ctx, st)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func openStore(url, config string) (store.Store, error) {
	if path, ok := strings.CutPrefix(url, "file:"); ok {
		return filestore.Open(path, filestore.Options{Bulk: volume.IsSegment})
	}
	o, err := s3store.ParseURL(url)
	if err != nil {
		return nil, err
	}
	if c := credentialsOf.FindStringSubmatch(config); c != nil {
		o.Credentials = c[1]
	}
	return s3store.Open(o)
}
