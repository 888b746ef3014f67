package start

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/durable"
)

// profiles keeps the profiles that were recorded on this node, one file an image.
type profiles struct {
	dir string
	log *slog.Logger

	mu sync.Mutex // one change at a time
}

const (
	profilesDir   = "profiles"
	profileSuffix = ".profile"
	maxProfiles   = 512 // kept on a node; the oldest go
)

var profileKind = durable.Kind{
	Name: "*" + profileSuffix,
	Lost: "an image's profile of this node: its next first start is slower, and is learned again",
	Do:   "record it again if it was recorded by hand (snapctl record); then remove this file",
}

// ListDamaged returns what was set aside below a root of what this package keeps there.
func ListDamaged(root string) ([]durable.Damage, error) {
	return durable.ListDamaged(filepath.Join(root, profilesDir), profileKind)
}

// ErrNoProfile says that there is no profile.
var ErrNoProfile = errors.New("no profile")

func (s *profiles) path(image digest.Digest) string {
	return filepath.Join(s.dir, image.Encoded()+profileSuffix)
}

// clean deletes what replacements of files that a power cut ended have left.
func (s *profiles) clean() {
	if err := durable.Sweep(s.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("files that were never finished stay", "dir", s.dir, "err", err)
	}
}

// get returns an image's profile. A damaged one is set aside.
func (s *profiles) get(image digest.Digest) (*profile.Profile, error) {
	if err := image.Validate(); err != nil {
		return nil, fmt.Errorf("image %q: %w", image, err)
	}
	var p *profile.Profile
	found, err := durable.Load(s.path(image), profileKind, s.log, func(data []byte) (err error) {
		p, err = profile.Decode(data)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case found != durable.Whole:
		return nil, fmt.Errorf("%s: %w", image, ErrNoProfile)
	}
	return p, nil
}

// memory returns how many bytes of memory get takes.
func (s *profiles) memory(image digest.Digest) int64 {
	st, err := os.Stat(s.path(image))
	if err != nil {
		return 0 // get says so
	}
	return st.Size() + profile.Memory(st.Size())
}

// ofRepository returns the newest profile of another image of a repository: most of what that reads
// when it starts, the next build reads too. It has decode read a file of so many bytes, and passes its error on.
func (s *profiles) ofRepository(repo string, decode func(path string, size int64) (*profile.Profile, error)) (*profile.Profile, error) {
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, path := range all {
		st, err := os.Stat(path)
		if err != nil {
			continue // removed meanwhile
		}
		p, err := decode(path, st.Size())
		switch {
		case errors.Is(err, profile.ErrInvalid) || errors.Is(err, os.ErrNotExist):
		case err != nil:
			return nil, err
		case p.Repository == repo:
			return p, nil
		}
	}
	return nil, ErrNoProfile
}

// list returns the files, the newest first.
func (s *profiles) list() ([]string, error) {
	all, err := filepath.Glob(filepath.Join(s.dir, "*"+profileSuffix))
	if err != nil {
		return nil, err
	}
	when := map[string]time.Time{}
	for _, path := range all {
		if st, err := os.Stat(path); err == nil {
			when[path] = st.ModTime()
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(when[b].Compare(when[a]), cmp.Compare(a, b)) })
	return all, nil
}

// add merges a profile into an image's, and returns the result.
func (s *profiles) add(image digest.Digest, p *profile.Profile) (*profile.Profile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.get(image)
	if err != nil && !errors.Is(err, ErrNoProfile) {
		return nil, err
	}
	if err != nil {
		old = nil
	}
	merged := profile.Merge(old, p)
	data, err := merged.Encode()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.Replace(s.path(image), data, 0o600); err != nil {
		return nil, err
	}
	all, err := s.list()
	if err == nil && len(all) > maxProfiles {
		for _, path := range all[maxProfiles:] {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return merged, err
}

// remove deletes an image's profile. One that is not there is no error.
func (s *profiles) remove(image digest.Digest) error {
	if err := image.Validate(); err != nil {
		return fmt.Errorf("image %q: %w", image, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.path(image)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// treeOf reads the tree of a cached image, whose metadata is always there.
func treeOf(f *cache.File) (*erofs.Reader, error) { return erofs.NewReader(f.Image(), f.MetaSize()) }

// fileAt is where a file's data lies in an image.
type fileAt struct {
	data, size int64
	path       string
}

// filesByPlace lists an image's files that have data, by its place.
func filesByPlace(f *cache.File) ([]fileAt, error) {
	tree, err := treeOf(f)
	if err != nil {
		return nil, err
	}
	var all []fileAt
	err = tree.Files(func(path string, n *erofs.Node) bool {
		if n.Size > 0 {
			all = append(all, fileAt{n.Data, n.Size, path})
		}
		return true
	})
	slices.SortFunc(all, func(a, b fileAt) int { return cmp.Or(cmp.Compare(a.data, b.data), cmp.Compare(a.path, b.path)) })
	return slices.CompactFunc(all, func(a, b fileAt) bool { return a.data == b.data }), err // of several names the first
}

// entriesOf turns what was read of images into a profile's entries, in order.
func entriesOf(used map[*cache.File][]cache.Use) ([]profile.Entry, error) {
	var began time.Time
	for _, uses := range used {
		if len(uses) > 0 && (began.IsZero() || uses[0].At.Before(began)) {
			began = uses[0].At
		}
	}
	type timed struct {
		profile.Entry
		at time.Time
	}
	var all []timed
	for f, uses := range used {
		if len(uses) == 0 {
			continue
		}
		files, err := filesByPlace(f)
		if err != nil {
			return nil, err
		}
		for _, u := range uses {
			i := sort.Search(len(files), func(i int) bool { return files[i].data > u.Extent.Off }) - 1
			if i < 0 || u.Extent.Off >= files[i].data+files[i].size {
				continue // cannot be: every extent is in a file
			}
			all = append(all, timed{profile.Entry{
				Path: files[i].path, Off: u.Extent.Off - files[i].data, Len: int64(u.Extent.Len),
				Digest: digest.NewDigestFromBytes(digest.SHA256, u.Extent.Digest[:]), AtMS: u.At.Sub(began).Milliseconds(),
			}, u.At})
		}
	}
	slices.SortStableFunc(all, func(a, b timed) int { return a.at.Compare(b.at) })
	entries := make([]profile.Entry, len(all))
	for i, e := range all {
		entries[i] = e.Entry
	}
	return entries, nil
}

// Profile returns the profile that was recorded of an image on this node.
func (s *Starts) Profile(image digest.Digest) (*profile.Profile, error) {
	return s.profiles.get(image)
}

// AddProfile merges a profile into the image's on this node, and returns the result.
func (s *Starts) AddProfile(image digest.Digest, p *profile.Profile) (*profile.Profile, error) {
	return s.profiles.add(image, p)
}

// RemoveProfile deletes an image's profile from this node.
func (s *Starts) RemoveProfile(image digest.Digest) error { return s.profiles.remove(image) }
