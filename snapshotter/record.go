package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter/layers"
	"github.com/remora-storage/remora/snapshotter/start"
)

// recordings are an image's layers that are mounted once more, or shown as files.
type recordings struct {
	*base
	bindings  *bindings
	mountings *mountings

	mu       sync.Mutex            // guards byID
	byID     map[string]*Recording // by ID
	recorded atomic.Uint64         // layers so far
}

// RecordLabel on an active snapshot names the Recording whose mounts it is to have.
const RecordLabel = "containerd.io/snapshot/remora.record"

// A Recording is an image's layers mounted once more, for one container, so that everything which
// that container reads is seen, whoever else uses the layers and whatever of them the page cache
// already holds.
type Recording struct {
	ID string

	s    *recordings
	img  layers.Image
	dir  string
	way  blockdev.Backend
	ends sync.Once

	layers map[string]*recordedLayer // by the directory of the binding
}

// firstRecorded is where the numbers of recordings' exports begin: far behind those of snapshots.
const firstRecorded = 1 << 31

// recordedLayer is a layer's mount.
type recordedLayer struct {
	*start.Recorder
	number uint64
	dir    string
}

var _ fusefile.Exact = (*start.Recorder)(nil)

// Record mounts an image's layers for one container whose reads are to be recorded. The image must
// have been pulled. End must be called.
func (rs *recordings) Record(ctx context.Context, manifest digest.Digest, ref string) (_ *Recording, err error) {
	files, img, err := rs.Layers(ctx, manifest, ref)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no layer of %s is lazy: nothing can be recorded (snapctl pull says why)", img.Ref)
	}
	r := &Recording{ID: rand.Text(), s: rs, img: img, layers: map[string]*recordedLayer{}}
	for _, way := range order(false) { // by these, all that is read comes to us
		if rs.caps.Ways[way].OK {
			r.way = way
			break
		}
	}
	if r.way == "" {
		return nil, errors.New("this kernel has no back end that reads can be recorded by: " + rs.caps.Ways[blockdev.FuseFile].Reason)
	}
	r.dir = filepath.Join(rs.root, "record", r.ID)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for _, b := range rs.bindings.all() {
		f := files[b.source().Descriptor.Digest]
		if f == nil || b.image() != f {
			continue
		}
		l := &recordedLayer{Recorder: start.NewRecorder(cache.For(f, b.source().Repo)), number: firstRecorded + rs.recorded.Add(1)}
		l.dir = filepath.Join(r.dir, strconv.FormatUint(l.number, 10))
		if err := os.MkdirAll(l.dir, 0o700); err != nil {
			return nil, err
		}
		r.layers[b.fsDir()] = l
		if err := rs.exports.serve(r.way, l.number, l, l.dir); err != nil {
			return nil, err
		}
	}
	rs.mu.Lock()
	rs.byID[r.ID] = r
	rs.mu.Unlock()
	return r, nil
}

// lowerDir returns where a snapshot finds a layer: in the mounts of the recording that it names, if
// it names one.
func (rs *recordings) lowerDir(id string, labels map[string]string) string {
	dir := rs.upperPath(id)
	name := labels[RecordLabel]
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r := rs.byID[name]; name != "" && r != nil && r.layers[dir] != nil {
		return r.layers[dir].dir
	}
	return dir
}

// Profile returns what was read so far.
func (r *Recording) Profile() (*profile.Profile, error) {
	var all []*start.Recorder
	for _, l := range r.layers {
		all = append(all, l.Recorder)
	}
	return start.ProfileOf(&r.img, all)
}

// End takes the mounts away. The container has ended, or its reads fail.
func (r *Recording) End() (err error) {
	r.ends.Do(func() {
		r.s.mu.Lock()
		delete(r.s.byID, r.ID)
		r.s.mu.Unlock()
		err = r.close()
	})
	return err
}

func (r *Recording) close() error {
	var errs []error
	for _, l := range r.layers {
		errs = append(errs, r.s.kernel.Unmount(l.dir), os.Remove(l.dir))
		r.s.exports.release(r.way, l.number)
	}
	if err := os.RemoveAll(r.dir); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// end ends all that are left.
func (rs *recordings) end() error {
	rs.mu.Lock()
	all := make([]*Recording, 0, len(rs.byID))
	for _, r := range rs.byID {
		all = append(all, r)
	}
	rs.mu.Unlock()
	var errs []error
	for _, r := range all {
		errs = append(errs, r.End())
	}
	return errors.Join(errs...)
}

// Recorded returns what was read so far in a recording.
func (rs *recordings) Recorded(id string) (*profile.Profile, error) {
	rs.mu.Lock()
	r := rs.byID[id]
	rs.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("no recording %q: remorad was restarted meanwhile", id)
	}
	return r.Profile()
}

// EndRecording ends a recording and returns when its mounts are gone. One that has ended is no error.
func (rs *recordings) EndRecording(id string) error {
	rs.mu.Lock()
	r := rs.byID[id]
	rs.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.End()
}

// Layers returns the images of a manifest's layers that are in the cache, with their sources.
// Layers that are not supplied here are left out.
func (rs *recordings) Layers(ctx context.Context, manifest digest.Digest, ref string) (map[digest.Digest]*cache.File, layers.Image, error) {
	img, err := rs.images.Manifest(ctx, manifest, ref)
	if err != nil {
		return nil, layers.Image{}, err
	}
	files := map[digest.Digest]*cache.File{}
	for _, b := range rs.bindings.all() {
		src := b.source()
		if slices.ContainsFunc(img.Layers, func(l layers.Source) bool { return l.Descriptor.Digest == src.Descriptor.Digest }) {
			if err := rs.mountings.ensure(ctx, b); err != nil {
				return nil, img, err
			}
			if f := b.image(); f != nil { // else it was unpacked
				files[src.Descriptor.Digest] = f
			}
		}
	}
	return files, img, nil
}
