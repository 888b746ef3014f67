package snapshotter

import (
	"bytes"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/falsify"
	fsindex "github.com/remora-storage/remora/fs/index"
)

// tableLies makes a layer whose own table says other digests of a file "a" than its bytes have, and says so in its manifest. The rest
// of it is right.
func tableLies(t *testing.T, more ...member) layer {
	t.Helper()
	l := estargzLayer(t, append(more, file("a", honest), file("of a", noise(62, len(honest))))...)
	var err error
	if l.Blob, l.Desc, err = falsify.Table(l.Blob, l.Desc, falsify.Swap("a", "of a", "digest", "chunkDigest")); err == nil {
		l.DiffID, err = falsify.DiffID(l.Blob)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestTableLies: a layer that is right, and whose table lies, is read whole and shown as it is, once no container has what was shown
// before; until then that goes on with what is right of it. It stays so over restarts.
func TestTableLies(t *testing.T) {
	other := file("b", noise(61, 50_000))
	l := tableLies(t, other)
	im := newImage(t, "app", nil, l)
	b := newBed(t, newOrigin(t, im), nil)
	top := b.pull(im)
	mounts := b.run("first", top)
	at := b.container("web", mounts)
	b.sees(mounts, "b", other.Body)
	if _, err := b.look(mounts, "a"); err == nil {
		t.Fatal("what the table says is another file was read")
	}
	eventually(t, "status to say that the table lies", func() bool {
		st := b.statusOf(l)
		return st.State == "mounted" && st.Format == "estargz" && strings.Contains(st.Reason, doubtWhy)
	})
	b.sees(mounts, "b", other.Body)
	eventually(t, "the container to be seen", func() bool { // else it may be about to mount what it was told
		b.detaching.mu.Lock()
		defer b.detaching.mu.Unlock()
		return len(b.detaching.answered) == 0
	})
	b.kernel.unmountOther(at)
	eventually(t, "the layer is right", func() bool { return b.statusOf(l).Reason == "" })
	b.sees(b.run("second", top), "a", honest)
	for range 2 {
		mounts = b.run("again-"+uniqueSuffix(), top)
		b.sees(mounts, "a", honest)
		b.sees(mounts, "b", other.Body)
		if st := b.statusOf(l); !st.Verified || st.Reason != "" {
			t.Errorf("status: %+v", st)
		}
		b.restart()
	}
}

// TestIndexLies: so is one whose published index lies, though it was opened by that a moment ago.
func TestIndexLies(t *testing.T) {
	other := noise(63, len(honest))
	l := tarLayer(t, file("a", honest), file("b", other))
	im := newImage(t, "app", nil, l)
	o := newOrigin(t, im)
	publish(t, o, im, fsindex.Artifact, indexAs(t, tarLayer(t, file("a", other), file("b", honest)), l.Digest()))
	b := newBed(t, o, trusting)
	top := b.pull(im)
	mounts := b.run("first", top)
	if _, err := b.look(mounts, "a"); err == nil || b.statusOf(l).Format != "index" {
		t.Fatalf("read by %s: %v", b.statusOf(l).Format, err)
	}
	b.remove("first")
	eventually(t, "the layer is right", func() bool { st := b.statusOf(l); return st.Format == "import" && st.Reason == "" })
	mounts = b.run("second", top)
	b.sees(mounts, "a", honest)
	b.sees(mounts, "b", other)
}

// TestTableLiesRepair: so does an operator have it, and a layer that is proven before its first use.
func TestTableLiesRepair(t *testing.T) {
	l := tableLies(t)
	im := newImage(t, "app", nil, l)
	b := newBed(t, newOrigin(t, im), nil)
	top := b.pull(im)
	b.run("first", top)
	if layers, _, err := b.repaired(im, false); err == nil || !strings.Contains(err.Error(), "once no container has it") {
		t.Errorf("while a container starts: %+v, %v", layers, err)
	}
	b.remove("first")
	if layers, _, err := b.repaired(im, false); err != nil || len(layers) != 1 || layers[0].Reason != "" {
		t.Errorf("%+v, %v", layers, err)
	}
	b.sees(b.run("second", top), "a", honest)

	b = newBed(t, newOrigin(t, im), beforeUse)
	b.sees(b.run("container", b.pull(im)), "a", honest)
}

// TestTableIsRight: where it is the registry that sends wrong bytes, nothing else is shown, and the layer is right once the registry is.
func TestTableIsRight(t *testing.T) {
	l := estargzLayer(t, file("a", honest))
	im := newImage(t, "app", nil, l)
	b := newBed(t, newOrigin(t, im), nil)
	top := b.pull(im)
	if err := b.mountings.ensure(b.ctx, b.bindings.get(b.id(top))); err != nil {
		t.Fatal(err)
	}
	wrong := bytes.Clone(l.Blob)
	for i := range 50_000 {
		wrong[i+1000] ^= 1
	}
	b.origin.Serve(l.Digest(), wrong)
	mounts := b.run("first", top)
	if _, err := b.look(mounts, "a"); err == nil {
		t.Fatal("wrong bytes were shown")
	}
	b.remove("first")
	if layers, _, err := b.repaired(im, false); err == nil || layers[0].Gone {
		t.Errorf("%+v, %v", layers, err)
	}
	b.origin.Serve(l.Digest(), l.Blob)
	b.sees(b.run("second", top), "a", honest)
}
