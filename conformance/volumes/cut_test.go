package volumes_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/volume"
)

const (
	cutVolume    = 16 << 20
	powerWriters = 4
	cutBlocks    = 50 // of each writer
)

// A powerWriter writes to blocks of its own, one after the other, and flushes now and then.
type powerWriter struct {
	ID     uint64
	Blocks []int64 // which block each of its writes went to; the first is write 1
	Acks   []cutAck
}

// cutAck is a flush that returned: writes up to this one were before it, and the disk below had been flushed so often.
type cutAck struct{ Write, Flushes int }

// recordedWrites is what the test knows of its recording.
type recordedWrites struct {
	First, Last int // flushes before the writers began, and at their end
	Node        volume.ID
	Writers     []*powerWriter
}

func (w *powerWriter) offset(block int64) int64 {
	return (int64(w.ID)*cutBlocks + block) * volume.Block
}

func (w *powerWriter) run(ctx context.Context, v *volume.Volume, writes int, rec *faultdev.Recorder) error {
	r := rand.New(rand.NewPCG(w.ID, 1))
	for i := 1; i <= writes; i++ {
		block := r.Int64N(cutBlocks)
		p := make([]byte, volume.Block)
		for k := 0; k < len(p); k += 16 {
			binary.LittleEndian.PutUint64(p[k:], w.ID+1)
			binary.LittleEndian.PutUint64(p[k+8:], uint64(i))
		}
		if err := v.WriteAt(ctx, p, w.offset(block)); err != nil {
			return err
		}
		w.Blocks = append(w.Blocks, block)
		if r.IntN(3) > 0 {
			continue
		}
		if err := v.Flush(ctx); err != nil {
			return err
		}
		w.Acks = append(w.Acks, cutAck{i, rec.Flushes()})
	}
	return nil
}

// mustHave insists that a volume holds the writer's first writes, to the last of some number of them, and that these are all
// that were flushed before a cut.
func (w *powerWriter) mustHave(t *testing.T, v *volume.Volume, flushes int) {
	t.Helper()
	var found [cutBlocks]uint64
	last := uint64(0)
	for block := range int64(cutBlocks) {
		p := make([]byte, volume.Block)
		if _, err := v.ReadAt(t.Context(), p, w.offset(block)); err != nil {
			t.Fatal(err)
		}
		id, seq := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
		for k := 0; k < len(p); k += 16 {
			if binary.LittleEndian.Uint64(p[k:]) != id || binary.LittleEndian.Uint64(p[k+8:]) != seq {
				t.Fatalf("writer %d: block %d is torn", w.ID, block)
			}
		}
		if seq > 0 && id != w.ID+1 || seq > uint64(len(w.Blocks)) {
			t.Fatalf("writer %d: block %d is of writer %d, write %d", w.ID, block, id, seq)
		}
		found[block], last = seq, max(last, seq)
	}
	for _, a := range w.Acks {
		if a.Flushes <= flushes && uint64(a.Write) > last {
			t.Fatalf("writer %d: write %d was flushed, the volume ends with write %d", w.ID, a.Write, last)
		}
	}
	var want [cutBlocks]uint64
	for i, block := range w.Blocks[:last] {
		want[block] = uint64(i) + 1
	}
	if found != want {
		t.Fatalf("writer %d: what the volume has up to write %d is no prefix of what was written:\n%v\n%v", w.ID, last, found, want)
	}
}

// attachCut attaches the volume whose store is on the disk, as a node whose journals are there or elsewhere.
func attachCut(t *testing.T, id volume.ID, dir, journals string) (*volume.Volume, *filestore.Store) {
	t.Helper()
	store, err := filestore.Make(filepath.Join(dir, "store"), filestore.Options{})
	testbed.Must(t, err)
	kept, err := volume.NewJournalDir(journals, 16<<20)
	testbed.Must(t, err)
	h, err := volume.Lookup(t.Context(), store, "data")
	testbed.Must(t, err)
	if err := os.Remove(filepath.Join(dir, "store", "node", id.String())); !errors.Is(err, fs.ErrNotExist) {
		testbed.Must(t, err) // so that nobody waits for the end of its lease
	}
	node := volume.NewMember(store, volume.MemberOptions{ID: id, Incarnation: volume.NewID()})
	v, err := volume.Attach(t.Context(), h.ID, node, kept, volume.AttachOptions{Options: volume.Options{Store: store}})
	testbed.Must(t, err)
	return v, store
}

// recordWrites has writers write to a volume whose journal and store are on a disk.
func recordWrites(t *testing.T, class volume.Class) (_ *faultdev.Recorder, r recordedWrites) {
	t.Helper()
	r.Node = volume.NewID()
	rec, _, dir, umount := testbed.RecordedExt4(t, 192<<20)
	store, err := filestore.Make(filepath.Join(dir, "store"), filestore.Options{})
	testbed.Must(t, err)
	_, _, err = volume.Create(t.Context(), store, "data", volume.Spec{Size: cutVolume, Class: class})
	testbed.Must(t, err)
	v, _ := attachCut(t, r.Node, dir, filepath.Join(dir, "journals"))
	testbed.SyncFS(t, dir)
	r.First = rec.Flushes()

	r.Writers = make([]*powerWriter, powerWriters)
	errs := make([]error, powerWriters)
	var running sync.WaitGroup
	for i := range r.Writers {
		r.Writers[i] = &powerWriter{ID: uint64(i)}
		running.Go(func() { errs[i] = r.Writers[i].run(t.Context(), v, 250, rec) })
	}
	running.Wait()
	testbed.Must(t, errors.Join(errs...))
	r.Last = rec.Flushes()
	testbed.Must(t, v.Close())
	umount()
	return rec, r
}

// TestVolumePowerCut: journal and file store lie on a disk whose power is cut at any flush; of what the disk was sent since
// whatever may be lost, torn and out of order. Each writer's part of the volume is then a prefix of what it wrote that
// has all that was flushed: with the journal, and for class remote from the store alone too.
func TestVolumePowerCut(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	for _, class := range []volume.Class{volume.Local, volume.Remote} {
		t.Run(string(class), func(t *testing.T) {
			t.Parallel()
			var r recordedWrites
			rec, seed := testbed.Replay(t, &r)
			if rec == nil {
				rec, r = recordWrites(t, class)
				seed = uint64(time.Now().UnixNano())
			}
			testbed.KeepIfFailed(t, rec, seed, r)
			rnd := rand.New(rand.NewPCG(seed, 0))
			cuts := testbed.Rounds(20, 1000)
			t.Logf("seed %d, %d flushes, %d cuts", seed, r.Last-r.First, cuts)
			for range cuts {
				at := r.First + rnd.IntN(r.Last-r.First+1)
				testbed.CutAndLook(t, rec, at, rnd, func(dir string) {
					v, store := attachCut(t, r.Node, dir, filepath.Join(dir, "journals"))
					for _, w := range r.Writers {
						w.mustHave(t, v, at)
					}
					testbed.Must(t, v.Detach(t.Context()))
					if err := testbed.WalkStore(t.Context(), store); err != nil {
						t.Error(err)
					}
				})
				if class == volume.Remote { // without the node's journal
					testbed.CutAndLook(t, rec, at, rnd, func(dir string) {
						v, store := attachCut(t, r.Node, dir, filepath.Join(dir, "others"))
						for _, w := range r.Writers {
							w.mustHave(t, v, at)
						}
						testbed.Must(t, v.Detach(t.Context()))
						if err := testbed.WalkStore(t.Context(), store); err != nil {
							t.Error(err)
						}
					})
				}
				if t.Failed() {
					t.Fatalf("cut after flush %d", at)
				}
			}
		})
	}
}
