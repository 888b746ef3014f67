package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A registry's 404 is believed if it is the layer's, or its repository's, and not that of everything whose bytes are away. That cannot be
// told for certain, so what follows from it is bounded, too. An operator who asks for it is believed instead.

// Repositories of one host whose images are released within a time, and neighbours that are asked whether the host has them still.
const (
	releasesMost = 4
	releasesSpan = time.Hour
	neighbours   = 4
)

// spellsKind is the file that keeps spells over restarts: else a remorad that is restarted again and again would remove ever more.
var spellsKind = durable.Kind{
	Name: "releases.json",
	Lost: "of which repositories images were removed within the last hour: as many again may be",
	Do:   "remove this file",
}

const spellsVersion = 1

// savedSpells are spells on disk.
type savedSpells struct {
	Version int     `json:"version"`
	Spells  []spell `json:"spells"`
}

// A spell is when images of a repository were released last.
type spell struct {
	Repo registry.Repository `json:"repository"`
	At   time.Time           `json:"at"`
}

// load reads the spells of an earlier life.
func (r *releasing) load() {
	saved, _, err := durable.LoadJSON(filepath.Join(r.root, spellsKind.Name), spellsKind, r.log, func(s *savedSpells) error {
		return durable.CheckVersion(s.Version, spellsVersion)
	})
	if r.unknown = err; err != nil {
		r.log.Error("no image is removed, since nobody knows how many were within the last hour", "err", err)
	}
	now := time.Now()
	for i := range saved.Spells {
		if saved.Spells[i].At.After(now) { // the clock was set back
			saved.Spells[i].At = now
		}
	}
	r.spells = saved.Spells
}

// lostOf returns the images that lack a layer for good, of those that may have it, or why none is to be removed. others are the places,
// beyond the binding's own, where the layer could have been. Images whose own places still have it are left out.
func (r *releasing) lostOf(ctx context.Context, b *binding, others []layers.Source, uses []Use, operator bool) (lost []Use, err error) {
	ours := b.source()
	unread := false
	type asked struct {
		repo            registry.Repository
		layer, manifest digest.Digest
	}
	known := map[asked]error{} // what came of that
	for _, use := range inNamespaces(uses, append([]layers.Source{ours}, others...)) {
		switch {
		case use.Unread != "":
			unread = true
			r.log.Warn("an image may have a layer that is no longer anywhere, and stays", "image", use.Name, "namespace", use.Namespace,
				"digest", ours.Descriptor.Digest, "why", use.Unread)
			continue
		case use.Stays != "":
			return nil, fmt.Errorf("image %s: %s", use, use.Stays)
		}
		there := false
		for i := range use.From {
			c := &use.From[i]
			if samePlace(c.Repo, ours.Repo) {
				c.Repo = ours.Repo // a record of containerd's lacks the port
			}
			what := asked{c.Repo, c.Descriptor.Digest, c.Manifest}
			err, ok := known[what]
			if !ok {
				err = r.lostBy(ctx, c, operator)
				known[what] = err
			}
			there = there || errors.Is(err, layers.ErrThere)
			if err != nil && !there {
				return nil, fmt.Errorf("image %s: %w", use, err)
			}
		}
		if !there {
			lost = append(lost, use)
		}
	}
	if unread && len(lost) == 0 {
		for _, use := range uses {
			if use.Unread != "" {
				return nil, fmt.Errorf("image %s may have it, too: %s", use, use.Unread)
			}
		}
	}
	return lost, nil
}

// inNamespaces returns the images of namespaces that may have the snapshot of a layer: another one's snapshot has another name, if its
// images come from other places (answers.go).
func inNamespaces(uses []Use, places []layers.Source) []Use {
	has := map[string]bool{places[0].Namespace: true}
	for _, use := range uses {
		for i := range use.From {
			if slices.ContainsFunc(places, func(p layers.Source) bool { return samePlace(p.Repo, use.From[i].Repo) }) {
				has[use.Namespace] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(uses), func(use Use) bool { return !has[use.Namespace] })
}

// lostBy returns nil if a repository is believed to have lost a layer for good.
func (r *releasing) lostBy(ctx context.Context, c *layers.Claim, operator bool) error {
	if r.layers.Imports.Beyond(&c.Source) != nil { // it has the layer, and no image can have it from there
		if operator {
			return nil
		}
		return r.mayRelease(c)
	}
	repository, err := r.layers.Places.Lost(ctx, c)
	switch {
	case operator && errors.Is(err, layers.ErrStorage):
		return nil
	case err != nil || operator:
		return err
	case !repository:
		return r.mayRelease(c)
	}
	var lack []string
	var unknown error // of a neighbour that says neither
	for _, src := range r.neighboursOf(c.Repo) {
		err := r.layers.Places.TryRange(ctx, &src)
		switch {
		case err == nil, errors.Is(err, registry.ErrRange):
			return r.mayRelease(c)
		case layers.IsGone(err):
			lack = append(lack, src.Repo.Path)
		case unknown == nil:
			unknown = err
		}
	}
	if unknown != nil {
		return unknown
	}
	if len(lack) > 0 {
		return fmt.Errorf("%s lacks %s, too: %w", c.Repo.Host, strings.Join(lack, ", "), layers.ErrStorage)
	}
	return r.mayRelease(c)
}

// neighboursOf returns layers of some other repositories of a registry.
func (r *releasing) neighboursOf(repo registry.Repository) (all []layers.Source) {
	seen := map[string]bool{repo.Path: true}
	for _, b := range r.bindings.all() {
		src := b.source()
		if src.Repo.Host == repo.Host && !seen[src.Repo.Path] && len(all) < neighbours {
			seen[src.Repo.Path] = true
			all = append(all, src)
		}
	}
	return all
}

// mayRelease returns an error if images of so many repositories of a host were released lately that somebody is to be asked.
func (r *releasing) mayRelease(c *layers.Claim) error {
	r.lostMu.Lock()
	defer r.lostMu.Unlock()
	return r.mayFollowLocked(r.spells, c)
}

// mayFollowLocked is mayRelease after some spells.
func (r *releasing) mayFollowLocked(spells []spell, c *layers.Claim) error {
	if r.unknown != nil {
		return fmt.Errorf("nobody knows how many images were removed within %s: %w", releasesSpan, r.unknown)
	}
	count := 0
	for _, s := range spells {
		switch {
		case time.Since(s.At) >= releasesSpan:
		case s.Repo == c.Repo:
			return nil
		case s.Repo.Host == c.Repo.Host:
			count++
		}
	}
	if count >= releasesMost {
		return fmt.Errorf("images of %d repositories of %s were removed within %s: "+
			"if that is right, remove this one by snapctl repair --release %s", count, c.Repo.Host, releasesSpan, c.Image)
	}
	return nil
}

// noteRelease counts a release that is to come, for all repositories of the image, or none: unless it is one too many and no operator has
// asked for it. It is on stable storage then, so that whatever ends this process, the next one counts it, too.
func (r *releasing) noteRelease(use *Use, operator bool) error {
	if len(use.From) == 0 { // it came from no registry
		return nil
	}
	r.lostMu.Lock()
	defer r.lostMu.Unlock()
	now, spells := time.Now(), slices.Clone(r.spells)
	for i := range use.From {
		c := &use.From[i]
		if !operator {
			if err := r.mayFollowLocked(spells, c); err != nil {
				return err
			}
		}
		spells = slices.DeleteFunc(spells, func(s spell) bool { return s.Repo == c.Repo || now.Sub(s.At) >= releasesSpan })
		spells = append(spells, spell{c.Repo, now})
	}
	err := durable.SaveJSON(filepath.Join(r.root, spellsKind.Name), savedSpells{spellsVersion, spells})
	if err != nil && !operator {
		return fmt.Errorf("note that it is removed: %w", err)
	}
	r.spells = spells
	return nil
}
