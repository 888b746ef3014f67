package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/internal/wire"
)

// A Disk is the file that a journal is in. Offsets, lengths and memory of requests are multiples of Block.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns when everything that was written before it began is on stable storage.
	Sync() error
	Size() int64
}

// The journal is a ring of records. A record is a block that says which writes follow, and their data; each has its
// predecessor's checksum, so that what is behind a torn one is never taken for its successor.
//
//	superblock | superblock | record | record | …
//
// Positions are bytes since the journal was made: a position's place is the ring's first byte + position mod size. The
// superblocks, written in turn, say where the oldest record that may be needed is. Space is used again only when
// one that says so is on stable storage.
const (
	superMagic   = "RJS1"
	recordMagic  = "RJR1"
	journalRing  = 2 * Block // offset
	recordHeader = 96
	entrySize    = 24
	maxEntries   = (Block - recordHeader) / entrySize
	maxRecord    = 1 << 20 // bytes of data
	minRing      = 4 * (Block + maxRecord)
	journalAhead = 8 // records that may be on their way to the disk at a time
	smallAhead   = 3 // of them, if they are not large: what waits meanwhile becomes one record
	largeQueue   = maxRecord / 2
)

// ErrJournal says that a journal has failed, for good.
var ErrJournal = errors.New("the journal has failed")

// An entry is one change of at most maxFrame blocks, or a hole of any length.
type entry struct {
	lba    uint64
	blocks uint32
	hole   bool
	data   []byte // of the caller; nil for a hole
	sum    uint32 // of data
	pos    int64  // of its data in the journal, once it is written
}

// appendReq is what one caller wants written, as a whole.
type appendReq struct {
	entries []entry
	size    int64 // bytes of data
	err     error
	ready   chan struct{} // closed when it is written or has failed
}

// cursor is a place between two records.
type cursor struct {
	pos  int64
	seq  uint64 // of the next record
	prev uint32 // checksum of the one before
}

type journal struct {
	disk  Disk
	epoch uint64
	ring  int64 // bytes
	// full is called when a record waits for room.
	full func()
	// waits is told that records, or what makes room in the ring, wait for room on the disk, and nil when they do not any more.
	waits func(what string, err error)
	// written is called for each batch, in the order of the log: the first of its write sequence numbers, its
	// entries, and where the record ends.
	written func(first uint64, entries []entry, end cursor)

	mu      sync.Mutex // guards the fields below
	super   superblock
	end     cursor // where the next record goes
	write   uint64 // sequence number of the last write that was given one
	queue   []*appendReq
	more    chan struct{} // holds one value if there may be something in queue
	last    chan struct{} // closed when the record before the next one is complete
	done    cursor        // behind the last record that is complete
	wanted  cursor        // what start may become
	synced  uint64        // records before this one are on stable storage
	err     error
	space   chan struct{} // closed, and made anew, when there may be more room
	starved bool          // a record waits for room
	flying  int           // records on their way to the disk
	needed  int64         // position before which nobody makes segments of records any more
	pressed bool          // a record waits for that to move
	stalled bool          // it will not for a while: the store does not take segments
	owing   bool          // the superblock is to move, and the disk has no room to write it

	window window
	// lead is how far, in bytes, records may get ahead of what segments were made of, while the store takes them; 0
	// for as far as there is room.
	lead int64

	taking  *semaphore.Weighted // held by the one writer that takes a batch
	syncing *semaphore.Weighted // and by the one Sync
}

// newJournal continues a journal behind its last record, end. No record before needed is needed any more; the superblock,
// which is written now and then, may name an older one. Nobody else may write to it.
func newJournal(disk Disk, super superblock, needed, end cursor, write, epoch uint64, windowSize int64) *journal {
	complete := make(chan struct{})
	close(complete)
	mem, free := windowMemory(windowSize)
	j := &journal{
		disk: disk, epoch: epoch, ring: super.size, super: super, end: end, write: write, done: end,
		wanted: needed, synced: super.start.seq, needed: needed.pos,
		taking: semaphore.NewWeighted(1), syncing: semaphore.NewWeighted(1),
		waits: func(string, error) {}, last: complete, more: make(chan struct{}, 1), space: make(chan struct{}), window: window{mem: mem},
	}
	// Not before: whoever still reads has the journal.
	runtime.AddCleanup(j, func(free func()) { free() }, free)
	return j
}

// ringPlace returns the offset on the disk of a position.
func ringPlace(ring, pos int64) int64 { return journalRing + pos%ring }

// ringFit returns where a record of n bytes that comes at pos begins: records do not go over the ring's end.
func ringFit(ring, pos, n int64) int64 {
	if left := ring - pos%ring; left < n {
		return pos + left
	}
	return pos
}

// append writes a request's entries and returns when the disk has them, though not yet on stable storage. Where the
// ring is full it waits for room.
func (j *journal) append(ctx context.Context, r *appendReq) error {
	r.ready = make(chan struct{})
	for i := range r.entries {
		e := &r.entries[i]
		e.sum = wire.Sum(e.data)
		r.size += int64(len(e.data))
	}
	j.mu.Lock()
	if j.err != nil {
		defer j.mu.Unlock()
		return j.err
	}
	j.queue = append(j.queue, r)
	j.mu.Unlock()
	j.wake()
	select {
	case <-r.ready:
		return r.err
	case <-ctx.Done():
	}
	if j.withdraw(r) {
		return context.Cause(ctx)
	}
	<-r.ready // its data is on its way
	return r.err
}

func (j *journal) wake() {
	select {
	case j.more <- struct{}{}:
	default:
	}
}

// withdraw takes a request out of the queue, if it is still there.
func (j *journal) withdraw(r *appendReq) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, q := range j.queue {
		if q == r {
			j.queue = append(j.queue[:i:i], j.queue[i+1:]...)
			if len(j.queue) == 0 {
				j.starved, j.pressed = false, false
			}
			return true
		}
	}
	return false
}

// A batch is one record.
type batch struct {
	requests []*appendReq
	entries  []entry
	first    uint64 // sequence number of its first write
	record   windowed
	size     int64 // bytes of data
	at, next cursor
	before   chan struct{} // closed when the record before is complete
	complete chan struct{}
}

// run writes records until ctx ends. journalAhead of them may run at the same time.
func (j *journal) run(ctx context.Context) {
	for {
		b := j.take(ctx)
		if b == nil {
			j.fail(context.Cause(ctx)) // whoever still waits
			return
		}
		_, err := j.disk.WriteAt(b.record.buf, ringPlace(j.ring, b.at.pos))
		if noRoom(err) {
			err = j.awaitRoom(ctx, b, err)
		}
		<-b.before
		j.finish(b, err)
	}
}

// noRoom tells a disk that is full from one that fails: file systems that copy on write need room for what is written over, too.
func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// What waits for room on the journal's disk, as Status says it.
const waitForRoom = "write the journal"

// awaitRoom writes a record again until its disk has room, or ctx ends. What the disk has of it meanwhile is no record.
func (j *journal) awaitRoom(ctx context.Context, b *batch, err error) error {
	pauses := backoff.Backoff{First: firstPause, Max: time.Second}
	for noRoom(err) {
		j.waits(waitForRoom, err)
		if backoff.Sleep(ctx, pauses.Next()) != nil {
			break
		}
		_, err = j.disk.WriteAt(b.record.buf, ringPlace(j.ring, b.at.pos))
	}
	j.waits(waitForRoom, nil) // others that still wait say so again
	return err
}

// take waits for requests and room, and makes a record. It returns nil when ctx has ended or the journal failed.
func (j *journal) take(ctx context.Context) *batch {
	if j.taking.Acquire(ctx, 1) != nil {
		return nil
	}
	defer j.taking.Release(1)
	for {
		b, space := j.tryTake()
		if b != nil {
			return b
		}
		if space != nil {
			j.full()
		}
		select {
		case <-j.more:
		case <-space:
		case <-ctx.Done():
			return nil
		}
	}
}

// tryTake makes a record of what is in the queue, if it fits. space is closed when trying again may help.
func (j *journal) tryTake() (*batch, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := &batch{}
	n := 0
	for _, r := range j.queue {
		if n > 0 && (len(b.entries)+len(r.entries) > maxEntries || b.size+r.size > maxRecord) {
			break
		}
		b.entries = append(b.entries, r.entries...)
		b.size += r.size
		n++
	}
	if n == 0 || j.err != nil || j.flying >= smallAhead && b.size < largeQueue {
		return nil, nil
	}
	total := Block + b.size
	pos := ringFit(j.ring, j.end.pos, total)
	if pos+total-j.super.start.pos > j.super.size {
		j.starved = true
		return nil, j.space
	}
	if j.lead > 0 && !j.stalled && pos+total-j.needed > j.lead {
		j.pressed = true
		return nil, j.space
	}
	j.starved, j.pressed = false, false
	j.flying++
	b.requests, j.queue = j.queue[:n:n], j.queue[n:]
	b.at = cursor{pos, j.end.seq, j.end.prev}
	b.first = j.write + 1
	j.write += uint64(len(b.entries))
	b.record = j.window.room(pos, int(total))
	j.encodeLocked(b)
	b.next = cursor{pos + total, b.at.seq + 1, binary.LittleEndian.Uint32(b.record.buf[4:])}
	j.end = b.next
	b.before, b.complete = j.last, make(chan struct{})
	j.last = b.complete
	return b, nil
}

// encodeLocked fills in a batch's record and the positions of its entries.
func (j *journal) encodeLocked(b *batch) {
	p := append(b.record.buf[:0], recordMagic...)
	p = append(p, 0, 0, 0, 0)
	p = append(p, j.super.vid[:]...)
	p = append(p, j.super.id[:]...)
	p = binary.LittleEndian.AppendUint64(p, j.epoch)
	p = binary.LittleEndian.AppendUint64(p, b.at.seq)
	p = binary.LittleEndian.AppendUint32(p, b.at.prev)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(b.entries)))
	p = binary.LittleEndian.AppendUint64(p, b.first)
	p = binary.LittleEndian.AppendUint64(p, j.synced)
	p = binary.LittleEndian.AppendUint64(p, uint64(b.size))
	p = append(p, make([]byte, recordHeader-len(p))...)
	pos := b.at.pos + Block
	for i := range b.entries {
		e := &b.entries[i]
		flags := uint32(0)
		if e.hole {
			flags = 1
		}
		p = binary.LittleEndian.AppendUint64(p, e.lba)
		p = binary.LittleEndian.AppendUint32(p, e.blocks)
		p = binary.LittleEndian.AppendUint32(p, flags)
		p = binary.LittleEndian.AppendUint32(p, e.sum)
		p = binary.LittleEndian.AppendUint32(p, 0)
		e.pos = pos
		pos += int64(copy(b.record.buf[pos-b.at.pos:], e.data))
	}
	clear(b.record.buf[len(p):Block])
	binary.LittleEndian.PutUint32(b.record.buf[4:], wire.Sum(b.record.buf[8:Block]))
}

// finish tells everybody about a record that is written, or has failed.
func (j *journal) finish(b *batch, err error) {
	j.mu.Lock()
	j.flying--
	if len(j.queue) > 0 {
		j.wake()
	}
	if err == nil {
		err = j.err // of an earlier one: replay would stop there
	}
	if err == nil {
		j.window.add(b.record)
	}
	j.mu.Unlock()
	if err != nil {
		j.fail(err)
		err = j.failed()
	} else {
		j.written(b.first, b.entries, b.next)
		j.mu.Lock()
		j.done = b.next
		j.mu.Unlock()
	}
	close(b.complete)
	for _, r := range b.requests {
		r.err = err
		close(r.ready)
	}
}

// fail ends the journal: what follows is refused.
func (j *journal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = fmt.Errorf("%w: %w", ErrJournal, err)
	}
	for _, r := range j.queue {
		r.err = j.err
		close(r.ready)
	}
	j.queue = nil
}

func (j *journal) failed() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// sync returns when every record that was complete before is on stable storage. Callers share what the disk does. A
// failure is final: what the kernel has dropped once is lost though a second Sync succeeds.
func (j *journal) sync() error {
	j.mu.Lock()
	upTo := j.done.seq
	j.mu.Unlock()
	_ = j.syncing.Acquire(context.Background(), 1) // it fails only when its context ends
	defer j.syncing.Release(1)
	j.mu.Lock()
	if j.err != nil || j.synced >= upTo {
		defer j.mu.Unlock()
		return j.err
	}
	upTo = j.done.seq
	j.mu.Unlock()
	if err := j.disk.Sync(); err != nil {
		j.fail(err)
		return j.failed()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.synced = max(j.synced, upTo)
	return j.err
}

// setEpoch says in which epoch records are written from now on.
func (j *journal) setEpoch(epoch uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch = epoch
}

// passed says that segments were made, and stored, of all records before a position.
func (j *journal) passed(pos int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.needed = max(j.needed, pos)
	if j.pressed {
		j.wake()
	}
}

// setStalled says whether the store takes segments. While it does not, records may fill the ring.
func (j *journal) setStalled(stalled bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stalled = stalled
	if stalled && j.pressed {
		j.wake()
	}
}

// throttled returns why a record waits, "" if none does.
func (j *journal) throttled() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.starved:
		return ThrottleJournal
	case j.pressed:
		return ThrottleStore
	}
	return ""
}

// relieve makes room of what was released. One goroutine at a time may call it or release.
func (j *journal) relieve() error {
	j.mu.Lock()
	c := j.wanted
	j.mu.Unlock()
	return j.release(c)
}

// release says that no record before c is needed any more. Nobody may read there. That is written down when it makes much
// room, or when room is wanted. A disk that is full is to be tried again: owes says so.
func (j *journal) release(c cursor) error {
	j.mu.Lock()
	j.wanted = c
	next := j.super
	due := c.pos-next.start.pos > next.size/4 || j.starved && c != next.start || j.owing
	j.mu.Unlock()
	if !due {
		return nil
	}
	next.start = c
	next.gen++
	_, err := j.disk.WriteAt(next.encode(), int64(next.gen%2)*Block)
	if j.owe(err) {
		return nil
	}
	if err == nil {
		err = j.disk.Sync()
	}
	if err != nil {
		j.fail(err)
		return j.failed()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.super = next
	close(j.space)
	j.space = make(chan struct{})
	return nil
}

// owe notes whether the superblock could not be written for want of room on the disk. The other one still counts.
func (j *journal) owe(err error) bool {
	j.mu.Lock()
	before := j.owing
	j.owing = noRoom(err)
	owing := j.owing
	j.mu.Unlock()
	if before || owing {
		if !owing {
			err = nil
		}
		j.waits(waitForRoom, err)
	}
	return owing
}

// owes reports whether relieve is to be called again after a while.
func (j *journal) owes() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.owing
}

// used returns how many bytes of the ring hold what may be needed, and how many there are.
func (j *journal) used() (used, size int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end.pos - j.wanted.pos, j.super.size
}
