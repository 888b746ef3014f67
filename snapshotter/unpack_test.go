package snapshotter

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// device is an entry that no image of ours can hold, and that containerd unpacks.
func device(name string) member {
	return member{Header: tar.Header{Name: name, Mode: 0o600, Typeflag: tar.TypeChar, Devmajor: 5000, Devminor: 1}}
}

// refusedLate claims an image's layers while the first bytes of them are all that the origin serves, and lets the rest come then.
func refusedLate(b *bed, im *image) (top string) {
	b.t.Helper()
	release := b.origin.Hold("/blobs/")
	top = b.pull(im)
	release()
	return top
}

// TestUnpackedInPlace: a layer of which no image can be made shows what containerd would have unpacked, though it was claimed: on what
// lies below it, under what lies above, and after a restart.
func TestUnpackedInPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes whiteouts")
	}
	for name, restart := range map[string]func(*bed){"": nil, ", after a restart": (*bed).restart, ", after a reboot": func(b *bed) {
		b.close()
		b.kernel.reboot()
		b.open()
	}} {
		for _, f := range formats {
			if !f.whole {
				continue
			}
			t.Run(f.name+name, func(t *testing.T) {
				low := estargzLayer(t, file("d/gone", []byte("old")), file("d/kept", noise(1, 5000)))
				odd := f.make(t, file("d/new", honest), file("d/.wh.gone", nil), file("big", noise(2, 300_000)), device("odd"))
				top := f.make(t, file("d/top", noise(3, 4000)))
				im := newImage(t, "app", nil, low, odd, top)
				b := newBed(t, newOrigin(t, im), nil)
				name := refusedLate(b, im)
				if _, err := b.Prepare(b.ctx, "first", name); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Mounts(b.ctx, "first"); err != nil {
					t.Fatal(err)
				}
				if restart != nil {
					restart(b)
				}
				mounts := b.run("container", name)
				b.sees(mounts, "d/new", honest)
				b.sees(mounts, "d/kept", noise(1, 5000))
				b.sees(mounts, "d/top", noise(3, 4000))
				lowest := b.named(im.ChainIDs[0], "")
				middle := b.named(im.ChainIDs[1], lowest)
				shown := filepath.Join(b.snapshotDir(b.id(middle)), unpackedDir, "d")
				var white unix.Stat_t
				if err := unix.Lstat(filepath.Join(shown, "gone"), &white); err != nil || white.Mode&unix.S_IFMT != unix.S_IFCHR || white.Rdev != 0 {
					t.Errorf("whiteout: %o, %v", white.Mode, err)
				}
				if st := b.statusOf(odd); st.State != "mounted" || st.Backend != "unpacked" || !st.Verified || st.Present < 300_000 {
					t.Errorf("%+v", st)
				}
				if u, err := b.Usage(b.ctx, middle); err != nil || u.Size < 300_000 || u.Inodes < 4 {
					t.Errorf("usage %+v, %v", u, err)
				}
				for _, key := range []string{"container", "first", name, middle, lowest} {
					if err := b.Remove(b.ctx, key); err != nil {
						t.Errorf("remove %s: %v", key, err)
					}
				}
				if err := b.Cleanup(b.ctx); err != nil {
					t.Error(err)
				}
				eventually(t, "what was unpacked is gone", func() bool {
					_, err := os.Stat(shown)
					return errors.Is(err, os.ErrNotExist)
				})
			})
		}
	}
}

// TestNotUnpacked: what is a bomb, or no longer the layer that was claimed, is not unpacked either.
func TestNotUnpacked(t *testing.T) {
	for name, spoil := range map[string]func(*bed, layer){
		"a bomb": func(b *bed, _ layer) { b.opts.Layers.Limits.Plain = 100_000 },
		"other bytes": func(b *bed, l layer) {
			bad := bytes.Clone(l.Blob)
			bad[len(bad)-1] ^= 1
			b.origin.Serve(l.Digest(), bad)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := gzipLayer(t, file("big", noise(2, 300_000)), device("odd"))
			im := newImage(t, "app", nil, l)
			b := newBed(t, newOrigin(t, im), func(b *bed) { spoil(b, l) })
			name := refusedLate(b, im)
			if _, err := b.Prepare(b.ctx, "container", name); err != nil {
				t.Fatal(err)
			}
			if mounts, err := b.Mounts(b.ctx, "container"); err == nil {
				t.Errorf("got %v", mounts)
			}
			if _, err := os.Stat(filepath.Join(b.snapshotDir(b.id(name)), unpackedDir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("what was unpacked: %v", err)
			}
		})
	}
}
