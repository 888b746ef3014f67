package snapshotter

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter/start"
)

// epoch is long ago.
var epoch = time.Unix(1_000_000_000, 0)

func entry(path string, body []byte) profile.Entry {
	return profile.Entry{Path: path, Len: int64(len(body)), Digest: digest.FromBytes(body), Runs: 1}
}

// profileOf is where an image's profile is kept.
func (b *bed) profileOf(im *image) string {
	return filepath.Join(b.root, "profiles", im.Target.Digest.Encoded()+".profile")
}

// TestProfiles: profiles of a node are merged, given and removed by image, and stay over restarts.
func TestProfiles(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	image := digest.FromString("image")
	if _, err := b.Profile(image); !errors.Is(err, start.ErrNoProfile) {
		t.Errorf("got %v", err)
	}
	for i, body := range []string{"a", "b"} {
		p, err := b.AddProfile(image, profile.New(image, "reg.test/app", []profile.Entry{entry("/"+body, []byte(body))}))
		if err != nil || p.Runs != i+1 || len(p.Entries) != i+1 {
			t.Errorf("got %+v, %v", p, err)
		}
	}
	b.restart()
	if p, err := b.Profile(image); err != nil || p.Runs != 2 || p.Repository != "reg.test/app" {
		t.Errorf("got %+v, %v", p, err)
	}
	for range 2 {
		if err := b.RemoveProfile(image); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Profile(image); !errors.Is(err, start.ErrNoProfile) {
		t.Errorf("got %v", err)
	}
}

// TestProfilesOfNothing: a name that is no digest is no path either.
func TestProfilesOfNothing(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	for _, image := range []digest.Digest{"", "x", "sha256:../../x"} {
		if _, err := b.Profile(image); err == nil || errors.Is(err, start.ErrNoProfile) {
			t.Errorf("%q: %v", image, err)
		}
		if _, err := b.AddProfile(image, profile.New(image, "r", nil)); err == nil {
			t.Errorf("%q was added", image)
		}
		if err := b.RemoveProfile(image); err == nil {
			t.Errorf("%q was removed", image)
		}
	}
}

// TestDamagedProfile: a profile that cannot be read is replaced by the next one.
func TestDamagedProfile(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	image := digest.FromString("image")
	dir := filepath.Join(b.root, "profiles")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, image.Encoded()+".profile"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Profile(image); !errors.Is(err, start.ErrNoProfile) {
		t.Errorf("got %v", err)
	}
	if p, err := b.AddProfile(image, profile.New(image, "r", []profile.Entry{entry("/a", []byte("a"))})); err != nil || p.Runs != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := b.Profile(image); err != nil {
		t.Errorf("got %v", err)
	}
}
