package volume

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/remote/store"
)

// simDisk is a journal's file whose unsynced writes a power cut loses, tears or keeps.
type simDisk struct {
	vid     ID
	mu      sync.Mutex
	stable  pages
	now     pages
	pending []simWrite
	writes  int
	rnd     *rand.Rand
	delay   time.Duration
	dead    bool         // power is off: nothing arrives any more
	full    *atomic.Bool // of its machine: what is written does not fit, or a part does
	failing error        // of Sync
}

// pages are blocks that are replaced and never changed, so that copies share them.
type pages map[int64][]byte

func (m pages) write(off int64, p []byte) {
	for ; len(p) > 0; off, p = off+Block, p[Block:] {
		m[off/Block] = p[:Block:Block]
	}
}

// tear writes the sectors [from, to) of p.
func (m pages) tear(off int64, p []byte, from, to int) {
	for ; len(p) > 0; off, p, from, to = off+Block, p[Block:], from-Block, to-Block {
		lo, hi := max(from, 0), min(to, Block)
		if lo >= hi {
			continue
		}
		b := make([]byte, Block)
		copy(b, m[off/Block])
		copy(b[lo:hi], p[lo:hi])
		m[off/Block] = b
	}
}

type simWrite struct {
	seq int
	off int64
	p   []byte
}

func (d *simDisk) sleep() {
	if d.delay > 0 {
		d.mu.Lock()
		t := time.Duration(d.rnd.Int64N(int64(d.delay)))
		d.mu.Unlock()
		time.Sleep(t)
	}
}

func (d *simDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := 0; n < len(p); n += Block {
		if b, ok := d.now[(off+int64(n))/Block]; ok {
			copy(p[n:], b)
		} else {
			clear(p[n:min(n+Block, len(p))])
		}
	}
	return len(p), nil
}

func (d *simDisk) WriteAt(p []byte, off int64) (int, error) {
	if off%Block != 0 || len(p)%Block != 0 || off+int64(len(p)) > simJournal {
		return 0, fmt.Errorf("%d bytes at %d", len(p), off)
	}
	d.sleep()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errors.New("no power")
	}
	if d.full != nil && d.full.Load() {
		d.writes++
		w := simWrite{d.writes, off, append([]byte(nil), p[:d.rnd.IntN(len(p)/Block)*Block]...)}
		d.now.write(off, w.p)
		d.pending = append(d.pending, w)
		return len(w.p), unix.ENOSPC
	}
	d.writes++
	w := simWrite{d.writes, off, append([]byte(nil), p...)}
	d.now.write(off, w.p)
	d.pending = append(d.pending, w)
	return len(p), nil
}

func (d *simDisk) Sync() error {
	d.mu.Lock()
	upTo := d.writes
	d.mu.Unlock()
	d.sleep()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errors.New("no power")
	}
	if d.failing != nil {
		return d.failing
	}
	for len(d.pending) > 0 && d.pending[0].seq <= upTo {
		d.stable.write(d.pending[0].off, d.pending[0].p)
		d.pending = d.pending[1:]
	}
	return nil
}

func (d *simDisk) Size() int64  { return simJournal }
func (d *simDisk) Close() error { return nil }

// cut is a power cut: each unsynced write is kept, lost or torn at a sector.
func (d *simDisk) cut() {
	for _, i := range d.rnd.Perm(len(d.pending)) {
		w := d.pending[i]
		if len(w.p) == 0 {
			continue
		}
		switch d.rnd.IntN(3) {
		case 0:
			d.stable.write(w.off, w.p)
		case 1:
			k := d.rnd.IntN(len(w.p)/512) * 512
			if d.rnd.IntN(2) == 0 {
				d.stable.tear(w.off, w.p, 0, k)
			} else {
				d.stable.tear(w.off, w.p, k, len(w.p))
			}
		}
	}
	d.pending = nil
}

// next is the disk as the next life finds it. What the one before still sends does not arrive.
func (d *simDisk) next(power bool, delay time.Duration) *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	if power {
		d.cut()
	}
	n := &simDisk{
		vid: d.vid, stable: maps.Clone(d.stable), now: maps.Clone(d.now), pending: d.pending, writes: d.writes,
		rnd: rand.New(rand.NewPCG(d.rnd.Uint64(), 0)), delay: delay, full: d.full,
	}
	if power {
		n.now = maps.Clone(d.stable)
	}
	return n
}

// copy is another disk with the same bytes.
func (d *simDisk) copy() *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &simDisk{
		vid: d.vid, stable: maps.Clone(d.stable), now: maps.Clone(d.now), pending: slices.Clone(d.pending), writes: d.writes,
		rnd: rand.New(rand.NewPCG(d.rnd.Uint64(), 0)), delay: d.delay, dead: d.dead,
	}
}

// simNode is a machine: it keeps its journals over crashes.
type simNode struct {
	mu       sync.Mutex
	id       ID
	journals map[ID]*simDisk
	orphans  int
	rnd      *rand.Rand
	delay    time.Duration
	boot     int
	diary    simDiary
	seen     Seen
	full     atomic.Bool // its disk
	damaged  string      // what replay must say of the journals: the test has damaged them on purpose
}

// member returns another life of the machine, as a node with the default TTL.
func (n *simNode) member(st store.Store) *Member {
	return NewMember(st, MemberOptions{ID: n.id, Incarnation: NewID(), Boot: "0", Diary: &n.diary})
}

// simDiary is a diary that outlives what the simulation does to a machine.
type simDiary struct {
	mu sync.Mutex
	e  DiaryEntry
}

func (d *simDiary) Read() (DiaryEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.e, nil
}

func (d *simDiary) Write(e DiaryEntry) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.e = e
	return nil
}

func (n *simNode) Create(vid, id ID) (JournalFile, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := &simDisk{vid: vid, stable: pages{}, now: pages{}, rnd: rand.New(rand.NewPCG(n.rnd.Uint64(), 0)), delay: n.delay,
		full: &n.full}
	n.journals[id] = d
	return d, nil
}

func (n *simNode) Open(_, id ID) (JournalFile, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.journals[id]; d != nil {
		return d, nil
	}
	return nil, ErrNoJournal
}

func (n *simNode) Remove(_, id ID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.journals, id)
	return nil
}

func (n *simNode) Orphan(vid, except ID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, d := range n.journals {
		if d.vid == vid && id != except {
			delete(n.journals, id)
			n.orphans++
		}
	}
	return nil
}

// copy is another machine with the same disks, that takes itself for the same.
func (n *simNode) copy() *simNode {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &simNode{id: n.id, journals: map[ID]*simDisk{}, rnd: n.rnd, delay: n.delay, boot: n.boot, seen: n.seen}
	c.diary.e, _ = n.diary.Read()
	for id, d := range n.journals {
		c.journals[id] = d.copy()
		c.journals[id].full = &c.full
	}
	return c
}

// crash ends the machine's daemon; power says that the machine goes with it. Requests of the old life that are on
// their way to a disk do not arrive.
func (n *simNode) crash(power bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if power {
		n.boot++
	}
	for id, d := range n.journals {
		n.journals[id] = d.next(power, n.delay)
	}
}
