package start

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestProfilesAreBounded: the oldest profiles go when they are too many.
func TestProfilesAreBounded(t *testing.T) {
	long := time.Unix(1_000_000_000, 0)
	s := profiles{dir: filepath.Join(t.TempDir(), "profiles"), log: imagetest.LogOf(t)}
	first := digest.FromString("first")
	if _, err := s.add(first, profile.New(first, "r", nil)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(s.path(first), long, long); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.path(first))
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxProfiles - 1 {
		if err := os.WriteFile(s.path(digest.FromString(fmt.Sprint(i))), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last := digest.FromString("last")
	if _, err := s.add(last, profile.New(last, "r", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.get(first); !errors.Is(err, ErrNoProfile) {
		t.Errorf("the oldest: %v", err)
	}
	if _, err := s.get(last); err != nil {
		t.Errorf("the newest: %v", err)
	}
}
