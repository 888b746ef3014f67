package snapshotter

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/snapshotters"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// TestWhichHostIsAsked: a reference never adds a host to those that containerd fetched from.
func TestWhichHostIsAsked(t *testing.T) {
	const src = sourceLabelPrefix
	for name, c := range map[string]struct {
		labels     map[string]string
		ref        string
		configured []string
		want       string // "" for none
	}{
		"the only one":                  {map[string]string{src + "reg.test": "app"}, "", nil, "reg.test/app"},
		"a reference to it":             {map[string]string{src + "reg.test": "app"}, "reg.test/app:1", nil, "reg.test/app"},
		"a reference supplies the port": {map[string]string{src + "reg.test": "app"}, "reg.test:5000/app:1", nil, "reg.test:5000/app"},
		"a reference to another host":   {map[string]string{src + "reg.test": "app"}, "evil.test/app:1", nil, "reg.test/app"},
		"a reference to another path":   {map[string]string{src + "reg.test": "app"}, "reg.test/secret:1", nil, "reg.test/app"},
		"a reference that is none":      {map[string]string{src + "reg.test": "app"}, "::::", nil, "reg.test/app"},
		"a reference chooses":           {map[string]string{src + "reg.test": "app,other"}, "reg.test/other:1", nil, "reg.test/other"},
		"two and no reference":          {map[string]string{src + "reg.test": "app,other"}, "", nil, ""},
		"two hosts and a stranger":      {map[string]string{src + "a.test": "app", src + "b.test": "app"}, "evil.test/app", nil, ""},
		"none recorded":                 {map[string]string{"x": "y"}, "reg.test/app:1", nil, ""},
		"the port that is configured":   {map[string]string{src + "reg.test": "app"}, "", []string{"reg.test:5000"}, "reg.test:5000/app"},
		"two ports that are configured": {map[string]string{src + "reg.test": "app"}, "", []string{"reg.test:1", "reg.test:2"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			images := NewContentImages(nil, nil, func(string) []string { return c.configured }, nil)
			got, err := images.chooseRepository(c.labels, c.ref)
			if c.want == "" {
				if !errors.Is(err, layers.ErrNotLazy) {
					t.Errorf("got %s, %v", got, err)
				}
				return
			}
			if err != nil || got.String() != c.want {
				t.Errorf("got %s, %v, want %s", got, err, c.want)
			}
		})
	}
}

// TestAuthorsLabels: a reference that a layer's annotations hold may be the author's own.
func TestAuthorsLabels(t *testing.T) {
	planted := []ocispec.Descriptor{{}, {Annotations: map[string]string{snapshotters.TargetRefLabel: "reg.test:9/app:1"}}}
	if got := clientRef("reg.test:9/app:1", planted); got != "" {
		t.Errorf("the author's reference was taken: %q", got)
	}
	if got := clientRef("reg.test/app:1", planted); got != "reg.test/app:1" {
		t.Errorf("the client's reference was not taken: %q", got)
	}
}

func TestRemoteNames(t *testing.T) {
	seen := map[string]bool{}
	for _, namespace := range []string{"", "default", "k8s.io"} {
		for _, parent := range []string{"", "a", "b"} {
			for _, chain := range []string{"x", "y"} {
				seen[remoteName(namespace, parent, chain, "k")] = true
			}
		}
	}
	if len(seen) != 18 {
		t.Errorf("%d names for 18 triples of namespace, parent and chainID", len(seen))
	}
}

// TestLookBelow: what a directory takes from the layers below heeds whiteouts and opaqueness.
func TestLookBelow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("whiteouts need root")
	}
	top, mid, low := t.TempDir(), t.TempDir(), t.TempDir()
	mk := func(root, dir string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, dir), mode); err != nil {
			t.Fatal(err)
		}
	}
	mk(low, "a/b", 0o711)
	mk(low, "gone/b", 0o711)
	mk(low, "covered/b", 0o711)
	mk(mid, "a", 0o700)
	mk(mid, "covered", 0o755)
	for _, err := range []error{
		unix.Mknod(filepath.Join(mid, "gone"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(mid, "covered"), "trusted.overlay.opaque", []byte("y"), 0),
		os.Symlink("a", filepath.Join(low, "link")),
		os.Symlink("no/where", filepath.Join(low, "lost")),
		os.Symlink("file", filepath.Join(low, "to-file")),
		os.Symlink("../../../../etc", filepath.Join(low, "out")),
		os.WriteFile(filepath.Join(low, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]uint32{"a": 0o700, "a/b": 0o711, "gone/b": 0, "gone": 0, "covered/b": 0, "nowhere": 0, "file": 0,
		"link/b": 0o711, "lost": 0, "lost/b": 0, "to-file": 0, "out": 0} {
		a, found, err := lookBelow([]string{top, mid, low}, path)
		if err != nil || found != (want != 0) || found && a.Mode&0o7777 != want {
			t.Errorf("%s: found %v, mode %#o, %v; want %#o", path, found, a.Mode, err, want)
		}
	}
	if a, found, err := lookBelow([]string{low}, "link"); err != nil || !found || a.Mode&0o7777 != 0o755 {
		t.Errorf("a link to a directory: found %v, mode %#o, %v", found, a.Mode, err)
	}
}
