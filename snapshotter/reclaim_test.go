package snapshotter

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// TestClaimedWhilePublic: that a namespace has a snapshot of a layer promises nothing to another one. Where the repository lets us in no
// longer, and not all of the layer is here, containerd downloads it, by the credentials of whoever pulls.
func TestClaimedWhilePublic(t *testing.T) {
	for _, f := range formats {
		for _, restart := range []bool{false, true} {
			t.Run(f.name, func(t *testing.T) {
				im := newImage(t, "app", nil, f.make(t, crowd(file("a", honest))...))
				o := newOrigin(t, im)
				b := newBed(t, o, nil)
				private := goneBlobs(o, "app", http.StatusUnauthorized)
				b.pull(im)
				private()
				b.fails(im)
				if restart {
					b.restart()
				}
				b.ctx = namespaces.WithNamespace(t.Context(), "other")
				b.fetch(im)
				b.decline(im, 0, "")
				mounts, err := b.Prepare(b.ctx, "unpack", "")
				if err != nil {
					t.Fatal(err)
				}
				b.unpack("unpack", "unpacked", mounts, file("a", honest))
				b.sees(b.run("container", "unpacked"), "a", honest)
			})
		}
	}
}

// TestClaimedAndHere: a layer of which all bytes are here, and proven, is promised to another namespace though nobody serves it and it is
// not mounted.
func TestClaimedAndHere(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			im := newImage(t, "app", nil, f.make(t, file("a", honest)))
			o := newOrigin(t, im)
			b := newBed(t, o, nil)
			name := b.pull(im)
			b.sees(b.run("container", name), "a", honest)
			b.complete(im.Layers[0], name)
			eventually(t, "its diffID to be checked", func() bool { return b.Status().Layers[0].Verified })
			b.remove("container") // whom Detach would wait for to mount what it was told
			if _, err := b.Detach(); err != nil {
				t.Fatal(err)
			}
			defer o.Silence("/blobs/")()
			o.Forget()
			b.ctx = namespaces.WithNamespace(t.Context(), "other")
			b.sees(b.run("other", b.pull(im)), "a", honest)
			if n := o.Requests("blobs", im.Layers[0].Digest().String()); n > 0 {
				t.Errorf("the registry was asked %d times", n)
			}
		})
	}
}

// TestMountedAndWithdrawn: a layer that is mounted, and of which something is missing, is promised to a further image only while its
// repository lets us have it: in another namespace, over restarts, too, and on other layers. An outage takes nothing back.
func TestMountedAndWithdrawn(t *testing.T) {
	for _, f := range formats {
		if f.whole {
			continue
		}
		shared, below := f.make(t, file("a", noise(1, 3<<20)), file("b", honest)), f.make(t, file("c", honest))
		for status, promised := range map[int]bool{
			http.StatusUnauthorized: false, http.StatusForbidden: false, http.StatusNotFound: false,
			http.StatusServiceUnavailable: true, http.StatusOK: true,
		} {
			for _, further := range []string{"another namespace", "after a restart", "on another layer"} {
				t.Run(fmt.Sprint(f.name, " ", status, " ", further), func(t *testing.T) {
					im, alone, other := newImage(t, "app", nil, shared), newImage(t, "app", nil, below), newImage(t, "app", nil, below, shared)
					alone.Tag, other.Tag = "alone", "other"
					o := newOrigin(t, im, alone, other)
					b := newBed(t, o, held)
					b.sees(b.run("container", b.pull(im)), "b", honest)
					parent := b.pull(alone)
					if st := b.statusOf(shared); st.State != "mounted" || st.Present == st.Data {
						t.Fatalf("status: %+v", st)
					}
					if further == "after a restart" {
						b.restart()
					}
					if status != http.StatusOK {
						o.Answer("/blobs/", status)
					}
					index := 1
					if further != "on another layer" {
						b.ctx = namespaces.WithNamespace(t.Context(), "other")
						other, parent, index = im, "", 0
					}
					b.fetch(other)
					if promised {
						b.claim(other, index, parent)
					} else {
						b.decline(other, index, parent)
					}
				})
			}
		}
	}
}
