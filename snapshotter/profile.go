package snapshotter

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter/start"
)

// Prime makes an image's start begin before containerd knows of the image: it reads the manifest and
// has the layers opened, for a namespace of containerd. It returns what containerd will ask the registry for, the document that the
// reference names first.
func (s *Snapshotter) Prime(ctx context.Context, namespace, ref string) ([]start.Document, error) {
	return s.starts.Prime(ctx, namespace, ref)
}

// Profile returns the profile that was recorded of an image on this node.
func (s *Snapshotter) Profile(image digest.Digest) (*profile.Profile, error) {
	return s.starts.Profile(image)
}

// AddProfile merges a profile into the image's on this node, and returns the result.
func (s *Snapshotter) AddProfile(image digest.Digest, p *profile.Profile) (*profile.Profile, error) {
	return s.starts.AddProfile(image, p)
}

// RemoveProfile deletes an image's profile from this node.
func (s *Snapshotter) RemoveProfile(image digest.Digest) error { return s.starts.RemoveProfile(image) }
