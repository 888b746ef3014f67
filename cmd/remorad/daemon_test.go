package main

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cmd/internal/cmdtest"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/fs/profile"
)

// testImage is an image of two layers.
func testImage(t *testing.T) *cmdtest.Image {
	t.Helper()
	return cmdtest.NewImage(t, cmdtest.OCI,
		[]cmdtest.File{{Path: "bin", Data: cmdtest.Noise(1, 100_000)}}, []cmdtest.File{{Path: "app", Data: cmdtest.Noise(2, 100_000)}})
}

// TestPrimeAndResolve: the documents of an image come from its registry before containerd asks, its layers are imported, and
// one that may not be takes the ordinary path, for a reason that is told.
func TestPrimeAndResolve(t *testing.T) {
	d, reg := newDaemon(t, "fetch.background = \"off\"\n"), cmdtest.NewRegistry(t)
	img := testImage(t)
	reg.Put("app", "1", img)
	ref := reg.Ref("app:1")
	docs, err := d.Prime(t.Context(), &control.PrimeRequest{Namespace: "default", Ref: ref})
	if err != nil || len(docs.Documents) != 2 || docs.Documents[0].Digest != img.Target.Digest ||
		!bytes.Equal(docs.Documents[0].Data, img.Docs[img.Target.Digest].Data) {
		t.Errorf("primed %+v, %v", docs, err)
	}
	if st, err := d.Status(t.Context()); err != nil || docs.Registry == nil || !reflect.DeepEqual(*docs.Registry, st.Registry) {
		t.Errorf("registries are reached by %+v, and status says %+v, %v", docs.Registry, st, err)
	}
	_, err = d.Prime(t.Context(), &control.PrimeRequest{Namespace: "default", Ref: reg.Ref("none:1")})
	fails(t, err, "none")

	d.containerd.Put(t, ref, img)
	reply, err := d.Resolve(t.Context(), &control.ResolveRequest{Namespace: "default", Manifest: img.Target.Digest, Ref: ref},
		func([]control.FetchProgress) {})
	if err != nil || len(reply.Ordinary) != 0 {
		t.Errorf("resolved %+v, %v", reply, err)
	}
	cached, err := d.Cache(t.Context())
	if err != nil || cached.Bytes < 200_000 { // both layers, which no snapshot has yet
		t.Errorf("cached %+v, %v", cached, err)
	}
	_, err = d.Resolve(t.Context(), &control.ResolveRequest{Namespace: "default", Manifest: digest.FromString("none"), Ref: ref},
		func([]control.FetchProgress) {})
	fails(t, err, digest.FromString("none").String())

	// What cannot be lazy cannot be recorded or shown, and is complete if containerd has it.
	err = d.Record(t.Context(), &control.RecordRequest{Namespace: "default", Manifest: img.Target.Digest, Ref: ref},
		func(*control.RecordReply) { t.Error("it is recorded") })
	fails(t, err)
	err = d.Expose(t.Context(), &control.ExposeRequest{Namespace: "default", Manifest: img.Target.Digest, Ref: ref,
		Layer: img.Manifest(t).Layers[0].Digest},
		func(*control.ExposeReply) { t.Error("it is shown") })
	fails(t, err)
	_, err = d.Recorded(t.Context(), &control.RecordingRequest{ID: "none"})
	fails(t, err, "none")
	if err := d.EndRecording(t.Context(), &control.RecordingRequest{ID: "none"}); err != nil {
		t.Errorf("a recording that has ended: %v", err)
	}

	ordinary := newDaemon(t, "import.mode = \"ordinary\"\n")
	ordinary.containerd.Put(t, ref, img)
	reply, err = ordinary.Resolve(t.Context(), &control.ResolveRequest{Namespace: "default", Manifest: img.Target.Digest, Ref: ref},
		func([]control.FetchProgress) {})
	if err != nil || len(reply.Ordinary) != 2 || reply.Ordinary[img.Manifest(t).Layers[0].Digest] == "" {
		t.Errorf("resolved %+v, %v", reply, err)
	}
}

// TestFetchOrdinary: of layers that containerd has unpacked, the blobs are in its store, or come from the registry.
func TestFetchOrdinary(t *testing.T) {
	d, reg := newDaemon(t, ""), cmdtest.NewRegistry(t)
	img := testImage(t)
	reg.Put("app", "1", img)
	ref := reg.Ref("app:1")
	d.containerd.Put(t, ref, img)
	done := map[digest.Digest]bool{}
	for _, cacheOnly := range []bool{false, true} {
		err := d.Fetch(t.Context(), &control.FetchRequest{Namespace: "default", Manifest: img.Target.Digest, Ref: ref, CacheOnly: cacheOnly},
			func(p *control.FetchProgress) { done[p.Digest] = p.Done && p.Bytes == p.Total })
		if err != nil {
			t.Errorf("cache only: %v: %v", cacheOnly, err)
		}
	}
	for _, l := range img.Manifest(t).Layers {
		if !done[l.Digest] {
			t.Errorf("layer %s is not done: %v", l.Digest, done)
		}
	}
	files := []cmdtest.File{{Path: "x", Data: cmdtest.Noise(3, 1000)}}
	dropped := cmdtest.NewImage(t, cmdtest.OCI, files)
	blob := dropped.Manifest(t).Layers[0].Digest
	delete(dropped.Docs, blob)
	d.containerd.Put(t, reg.Ref("dropped:1"), dropped)
	fetch := func() error {
		return d.Fetch(t.Context(), &control.FetchRequest{Namespace: "default", Manifest: dropped.Target.Digest, Ref: reg.Ref("dropped:1")},
			func(*control.FetchProgress) {})
	}
	fails(t, fetch(), "layer "+blob.String(), "404")
	reg.Put("dropped", "1", cmdtest.NewImage(t, cmdtest.OCI, files))
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(d.containerd.Blobs(t), blob) {
		t.Error("the blob is not in containerd's store")
	}
}

// TestProfiles of images are kept, merged and removed.
func TestProfiles(t *testing.T) {
	d := newDaemon(t, "")
	image := digest.FromString("image")
	one := func(path string) []byte {
		data, err := profile.New(image, "r.example.com/app", []profile.Entry{{Path: path, Len: 10, Digest: digest.FromString(path)}}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if r, err := d.Profile(t.Context(), &control.ProfileRequest{Manifest: image}); err != nil || len(r.Profile) != 0 {
		t.Errorf("before any: %+v, %v", r, err)
	}
	for runs, path := range []string{"/a", "/b"} {
		r, err := d.AddProfile(t.Context(), &control.ProfileRequest{Manifest: image, Profile: one(path)})
		if err != nil {
			t.Fatal(err)
		}
		if p, err := profile.Decode(r.Profile); err != nil || p.Runs != runs+1 || len(p.Entries) != runs+1 {
			t.Errorf("merged: %+v, %v", p, err)
		}
	}
	if r, err := d.Profile(t.Context(), &control.ProfileRequest{Manifest: image}); err != nil || len(r.Profile) == 0 {
		t.Errorf("kept: %+v, %v", r, err)
	}
	_, err := d.AddProfile(t.Context(), &control.ProfileRequest{Manifest: image, Profile: []byte("{}")})
	fails(t, err, "profile")
	for range 2 {
		if err := d.RemoveProfile(t.Context(), &control.ProfileRequest{Manifest: image}); err != nil {
			t.Error(err)
		}
	}
	if r, err := d.Profile(t.Context(), &control.ProfileRequest{Manifest: image}); err != nil || len(r.Profile) != 0 {
		t.Errorf("removed: %+v, %v", r, err)
	}
}
