package volume

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
)

// far is a store behind a round trip.
type far struct {
	store.Store
	rtt time.Duration
}

func (f *far) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	time.Sleep(f.rtt)
	return f.Store.Get(ctx, key, off, n)
}

func (f *far) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	time.Sleep(f.rtt)
	return f.Store.PutIfMatch(ctx, key, p, version)
}

func (f *far) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	time.Sleep(f.rtt)
	return f.Store.PutIfAbsent(ctx, key, p)
}

// forgetful is a store that keeps no data, and counts what it was sent.
type forgetful struct {
	store.Store
	data, nodes atomic.Int64
}

func (f *forgetful) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	if strings.Contains(key, "/seg/") {
		f.data.Add(int64(len(p)))
		return store.Object{Key: key, Size: int64(len(p)), Version: "x"}, nil
	}
	f.nodes.Add(int64(len(p)))
	return f.Store.Put(ctx, key, p)
}

// rssAnon returns the process's anonymous memory in bytes.
func rssAnon(tb testing.TB) int64 {
	tb.Helper()
	p, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Fatal(err)
	}
	var kib int64
	for line := range strings.Lines(string(p)) {
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	tb.Fatal("no RssAnon")
	return 0
}

// BenchmarkAttach attaches a volume of 1 TiB with ten million extents whose store is 20 ms away, cold, and reads a block.
func BenchmarkAttach(b *testing.B) {
	const size, count = 1 << 40, 10_000_000
	ctx := b.Context()
	st, err := filestore.Make(b.TempDir(), filestore.Options{}) // so that none of it is in this process
	if err != nil {
		b.Fatal(err)
	}
	h, _, err := Create(ctx, st, "v", Spec{Size: size})
	if err != nil {
		b.Fatal(err)
	}
	put := func(ctx context.Context, key string, p []byte) error {
		_, err := st.Put(ctx, key, p)
		return err
	}
	h, version, err := readHead(ctx, st, h.ID)
	if err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(2, 2))
	const inSegment = 2000
	root := &mapRoot{}
	var ref *NodeRef
	nodes := newMapNodes(st, h.ID, 1<<30, waiter{})
	seq := uint64(0)
	for done := 0; done < count; done += count / 10 {
		changed := &extents{}
		var segs []SegmentRef
		for i := range count / 10 {
			if i%inSegment == 0 {
				seq++
				segs = append(segs, SegmentRef{Seq: seq, Epoch: 1, Random: uint32(seq), Size: maxSegment / 2, Table: maxSegment/2 - 100})
			}
			changed.set(extent{lba: r.Uint64N(size / Block), blocks: 1, seq: seq,
				place: place{seg: seq, off: segmentHeader + int64(i%inSegment)*frameSize(1), whole: 1}})
		}
		cp, err := makeCheckpoint(ctx, nodes, root, ref, h.Gen+uint64(done)+1, seq, segs, changed, put)
		if err != nil {
			b.Fatal(err)
		}
		root, ref = cp.root, &cp.ref
		h.Segment, h.Write = seq, seq
	}
	h.Gen += count
	next := h.clone()
	next.next()
	next.Root = ref
	for range checkpointTail { // and a tail as long as it gets
		seq++
		w := newSegmentWriter(logPosition{id: h.ID, epoch: 1, seq: seq, write: seq}, uint32(seq), nil)
		lba := r.Uint64N(1 << 20)
		for range inSegment {
			lba += 1 + r.Uint64N(1000)
			w.hole(extent{lba: lba, blocks: 1, seq: seq})
		}
		p, s, _ := w.finish()
		if err := put(ctx, s.key(h.ID), p); err != nil {
			b.Fatal(err)
		}
		next.Tail = append(next.Tail, s)
	}
	next.Epoch, next.Segment, next.Write = 1, seq, seq
	if _, _, ok, err := swapHead(ctx, st, h, next, version, waiter{}); !ok || err != nil {
		b.Fatal(ok, err)
	}
	nodes = nil
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	at := &simNode{id: NewID(), journals: map[ID]*simDisk{}, rnd: r}
	slow := &far{st, 20 * time.Millisecond}
	most := int64(0)
	b.ResetTimer()
	for b.Loop() {
		slow.rtt = 20 * time.Millisecond
		begin := time.Now()
		v, err := Attach(ctx, h.ID, NewMember(slow, MemberOptions{ID: at.id, Incarnation: NewID(), Boot: "0", Diary: &at.diary}), at,
			AttachOptions{Options: Options{Store: slow}})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/attach")
		slow.rtt = 0 // what follows is about memory
		if _, err := v.nodes.segment(ctx, v.root.Segments, 1); err != nil {
			b.Fatal(err)
		}
		for range 10_000 { // and the map of blocks here and there, which is kept as far as memory goes
			if err := v.nodes.lookup(ctx, v.root.Extents, r.Uint64N(size/Block-8), size/Block, func(extent) bool { return false }); err != nil {
				b.Fatal(err)
			}
			most = max(most, rssAnon(b))
		}
		b.ReportMetric(float64(most)/(1<<20), "MiB-RssAnon")
		v.Close()
	}
}

// gcPercent is what remorad sets.
const gcPercent = 50

// BenchmarkMapUpload writes 4 KiB at random into a volume of 1 TiB, and reports what the map takes of what is sent to the store.
func BenchmarkMapUpload(b *testing.B) {
	ctx := b.Context()
	files, err := filestore.Make(b.TempDir(), filestore.Options{}) // so that none of it is in this process
	if err != nil {
		b.Fatal(err)
	}
	st := &forgetful{Store: files}
	h, _, err := Create(ctx, st, "v", Spec{Size: 1 << 40, Class: Local})
	if err != nil {
		b.Fatal(err)
	}
	journals, err := NewJournalDir(b.TempDir(), 0)
	if err != nil {
		b.Fatal(err)
	}
	st.data.Store(0)
	st.nodes.Store(0)
	v, err := Attach(ctx, h.ID, NewMember(st, MemberOptions{ID: NewID(), Incarnation: NewID()}), journals,
		AttachOptions{Options: Options{Store: st}})
	if err != nil {
		b.Fatal(err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	var most int64
	var writers sync.WaitGroup
	left := atomic.Int64{}
	for b.Loop() {
		left.Store(3_000_000)
		for w := range 32 {
			writers.Go(func() {
				r := rand.New(rand.NewPCG(3, uint64(w)))
				p := make([]byte, Block)
				for left.Add(-1) > 0 {
					if err := v.WriteAt(ctx, p, r.Int64N(1<<40/Block)*Block); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		done := make(chan struct{})
		go func() { writers.Wait(); close(done) }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			case <-time.After(200 * time.Millisecond):
				most = max(most, rssAnon(b))
			}
		}
	}
	if err := v.Detach(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(st.nodes.Load())/float64(st.data.Load()), "map/data")
	b.ReportMetric(float64(most)/(1<<20), "MiB-RssAnon")
}
