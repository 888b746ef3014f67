package volume

import (
	"bytes"
	"context"
	"testing"
)

// cutDisk remembers what was written since the last Sync.
type cutDisk struct {
	stable  []byte
	now     []byte
	pending []cutWrite
}

type cutWrite struct {
	off int64
	p   []byte
}

func (d *cutDisk) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.now[off:]), nil }

func (d *cutDisk) WriteAt(p []byte, off int64) (int, error) {
	copy(d.now[off:], p)
	const half = Block / 2 // parts that are written as a whole
	for n := 0; n < len(p); n += half {
		d.pending = append(d.pending, cutWrite{off + int64(n), bytes.Clone(p[n : n+half])})
	}
	return len(p), nil
}

func (d *cutDisk) Sync() error {
	d.stable, d.pending = bytes.Clone(d.now), nil
	return nil
}

func (d *cutDisk) Size() int64 { return int64(len(d.now)) }

// everyCut calls look with every disk that a power cut can leave now: of each half block that was not synced the old or the
// new one.
func (d *cutDisk) everyCut(t *testing.T, look func(Disk)) (cuts int) {
	t.Helper()
	if len(d.pending) > 16 {
		t.Fatalf("%d unsynced parts are too many", len(d.pending))
	}
	for kept := range 1 << len(d.pending) {
		look(leftDisk{d, kept})
		cuts++
	}
	return cuts
}

// leftDisk is what a power cut leaves of a cutDisk: kept has a bit for each unsynced part.
type leftDisk struct {
	*cutDisk
	kept int
}

func (d leftDisk) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, d.stable[off:])
	for i, w := range d.pending {
		lo, hi := max(off, w.off), min(off+int64(n), w.off+int64(len(w.p)))
		if d.kept>>i&1 == 1 && lo < hi {
			copy(p[lo-off:hi-off], w.p[lo-w.off:])
		}
	}
	return n, nil
}

// TestJournalEveryCut: after a power cut at any step of a short history, whichever parts of what was not synced the disk has
// kept, replay finds a prefix of the records with all that were synced, and their bytes are right. The history goes over the
// ring's end, and space is used again.
func TestJournalEveryCut(t *testing.T) {
	t.Parallel()
	rounds := 8
	if testing.Short() { // one that goes over the ring's end
		rounds = 3
	}
	vid, id := NewID(), NewID()
	disk := &cutDisk{now: make([]byte, journalRing+minRing)}
	if err := formatJournal(disk, vid, id); err != nil {
		t.Fatal(err)
	}
	super, err := openSuperblock(disk, vid, id)
	if err != nil {
		t.Fatal(err)
	}
	j := newJournal(disk, super, super.start, super.start, 0, 1, 0)
	var ends []cursor // behind each record
	j.written, j.full = func(_ uint64, _ []entry, end cursor) { ends = append(ends, end) }, func() {}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { j.run(ctx); close(ended) }()
	defer func() { stop(); <-ended }()

	content := func(write uint64) []byte { return bytes.Repeat([]byte{byte(write), byte(write >> 8), 7, 9}, Block/4) }
	write, synced, released := uint64(0), uint64(0), uint64(0)
	cuts := 0
	look := func() {
		cuts += disk.everyCut(t, func(left Disk) {
			last := uint64(0)
			_, err := replay(left, vid, id, nil, false, func(first uint64, entries []entry, _ cursor) {
				for i, e := range entries {
					n := first + uint64(i)
					if last > 0 && n != last+1 {
						t.Fatalf("write %d follows write %d", n, last)
					}
					if e.lba != n || !e.hole && !bytes.Equal(e.data[:Block], content(n)) {
						t.Fatalf("write %d is not what was written", n)
					}
					last = n
				}
			})
			if err != nil {
				t.Fatalf("writes up to %d were synced: %v", synced, err)
			}
			if last < synced {
				t.Fatalf("writes up to %d were synced, replay ends with %d", synced, last)
			}
		})
	}
	add := func(blocks int) {
		write++
		r := &appendReq{entries: []entry{{lba: write, hole: blocks == 0, blocks: 1}}}
		if blocks > 0 {
			r.entries[0].blocks, r.entries[0].data = uint32(blocks), bytes.Repeat(content(write), blocks)
		}
		if err := j.append(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	sync := func() {
		if err := j.sync(); err != nil {
			t.Fatal(err)
		}
		synced = write
	}
	for range rounds {
		look()
		add(1)
		add(0)
		add(1)
		look()
		if write%2 == 0 {
			add(1)
			look()
		}
		sync()
		look()
		room := func() int64 { // until the ring is full, as far as records of one block go
			pos := ends[len(ends)-1].pos
			return min(minRing-(pos-j.super.start.pos), minRing-pos%minRing)
		}
		for room() >= Block*(1+maxFrame) {
			add(maxFrame)
		}
		for room() >= 2*Block {
			add(1)
		}
		sync()
		// Room for more is made by what is on stable storage alone.
		released = write - 2
		if err := j.release(ends[released-1]); err != nil {
			t.Fatal(err)
		}
		look()
	}
	if ends[len(ends)-1].pos < int64(rounds)*minRing/2 {
		t.Errorf("the ring went round %d times only", ends[len(ends)-1].pos/minRing)
	}
	t.Logf("%d cuts", cuts)
}
