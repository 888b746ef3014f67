package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
)

// A named request is about a volume.
type named interface {
	GetName() string
	GetStore() string
}

// A target is the volume that a request means: a store, and the volume's id in it.
type target struct {
	name string
	url  string    // one that leads to the store
	id   volume.ID // of one that this node owns; others are looked up
}

func (t target) owned() bool { return t.id != volume.ID{} }

var (
	errNoStore     = errors.New("name a store: --store, or [volume] store in remorad's configuration")
	errUnknownName = errors.New("this node does not know in which store it is")
	errAmbiguous   = errors.New("several volumes have this name; choose one with --store")
)

// target says which volume a request means. All verbs go by it. A store is the same by each of its URLs. Without one, the volume is the
// only one of its name that this node knows, or is looked for in the configured store. Names that several have are refused.
func (v *volumes) target(ctx context.Context, req named) (target, error) {
	found, err := v.owned(ctx, req)
	if err != nil {
		return target{}, err
	}
	name := req.GetName()
	if req.GetStore() != "" {
		if len(found) > 0 {
			return found[0], nil
		}
		return target{name: name, url: cleanStore(req.GetStore())}, nil
	}
	for _, url := range v.host.StoresOf(name) {
		if !slices.ContainsFunc(found, func(t target) bool {
			same, err := v.host.Same(ctx, t.url, url)
			return err == nil && same // one that is not to be asked is told of by its own name
		}) {
			found = append(found, target{name: name, url: url})
		}
	}
	switch {
	case len(found) == 0 && v.byName != "":
		return target{name: name, url: v.byName}, nil
	case len(found) == 0:
		return target{}, fmt.Errorf("volume %s: %w: name it with --store", name, errUnknownName)
	}
	return v.only(ctx, found)
}

// ownTarget is target for verbs of what is here: it chooses among the volumes that this node owns, and then among those of which it has
// a dead device. ok is false if it has none that is meant.
func (v *volumes) ownTarget(ctx context.Context, req named) (t target, ok bool, err error) {
	found, err := v.owned(ctx, req)
	switch {
	case err != nil:
		return t, false, err
	case len(found) > 0:
		t, err = v.only(ctx, found)
		return t, err == nil, err
	case slices.ContainsFunc(v.disks.List(), func(k disk.Disk) bool { return k.Dead }):
		url, _, h, err := v.find(ctx, req)
		if err != nil {
			return t, false, err
		}
		t = target{h.Name, url, h.ID}
		return t, v.disks.Find(sourceOf(h.ID)).Dead, nil
	case req.GetStore() == "" && v.byName == "" && len(v.host.StoresOf(req.GetName())) == 0:
		return t, false, fmt.Errorf("volume %s: %w: name it with --store", req.GetName(), errUnknownName)
	}
	return t, false, nil
}

// owned returns what this node owns of a request's name, and of its store if it has one. That is asked only if its URL was never used.
func (v *volumes) owned(ctx context.Context, req named) (found []target, err error) {
	for _, a := range v.host.Attached() {
		if a.Name != req.GetName() {
			continue
		}
		if url := req.GetStore(); url != "" {
			same, err := v.host.Same(ctx, a.Store, cleanStore(url))
			if err != nil {
				return nil, err
			}
			if !same {
				continue
			}
		}
		found = append(found, target{a.Name, a.Store, a.ID})
	}
	return found, nil
}

// only returns the one volume that is there, and an error that lists them if several are.
func (v *volumes) only(ctx context.Context, found []target) (target, error) {
	if len(found) == 1 {
		return found[0], nil
	}
	var there []target
	var says []string
	for _, t := range found {
		what, is := v.introduce(ctx, t)
		if is {
			there = append(there, t)
			says = append(says, t.url+" ("+what+")")
		}
	}
	switch len(there) {
	case 0:
		return found[0], nil // which will be said to be gone
	case 1:
		return there[0], nil
	}
	return target{}, fmt.Errorf("volume %s: %w: %s", there[0].name, errAmbiguous, strings.Join(says, ", "))
}

// introduce says what a volume is, for people who have to choose. there is false if it is no more.
func (v *volumes) introduce(ctx context.Context, t target) (what string, there bool) {
	if !t.owned() {
		s, err := v.host.Store(ctx, t.url)
		var h *volume.Head
		if err == nil {
			err = patiently(ctx, s, func(ctx context.Context, s store.Store) (err error) {
				h, err = volume.Lookup(ctx, s, t.name)
				return err
			})
		}
		switch {
		case errors.Is(err, volume.ErrNotFound):
			return "", false
		case err != nil:
			return err.Error(), true
		}
		return "id " + h.ID.String() + ", not attached here", true
	}
	what = "id " + t.id.String()
	device, _ := v.device(t.id)
	if device == "" {
		return what + ", without a device", true
	}
	what += ", " + device
	if dirs := mountPoints(device); len(dirs) > 0 {
		what += " on " + strings.Join(dirs, ", ")
	}
	return what, true
}

// store returns the store that a request means.
func (v *volumes) store(ctx context.Context, req named) (url string, s store.Store, err error) {
	t, err := v.target(ctx, req)
	if err == nil {
		s, err = v.host.Store(ctx, t.url)
	}
	return t.url, s, err
}

// find returns a volume's store and head. That of one that this node owns may be older than what the store has.
func (v *volumes) find(ctx context.Context, req named) (url string, s store.Store, h *volume.Head, err error) {
	t, err := v.target(ctx, req)
	if err == nil {
		s, err = v.host.Store(ctx, t.url)
	}
	if err != nil {
		return "", nil, nil, err
	}
	if h = v.host.Head(t.id); h == nil {
		h, err = volume.Lookup(ctx, s, t.name)
	}
	return t.url, s, h, err
}
