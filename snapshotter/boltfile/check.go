package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt's numbers are those of the machine; all that remorad runs on are little-endian.
var le = binary.LittleEndian

// ErrDamaged says that a file is not what bbolt wrote.
var ErrDamaged = errors.New("not a whole bbolt database")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// The layout, all numbers little-endian:
//
//	page      id u64, flags u16, count u16, overflow u32 (more pages that belong to it)
//	meta      magic u32, version u32, page size u32, flags u32, root bucket, freelist u64, pages u64, transaction u64, FNV-1a u64
//	bucket    root page u64 (0: the page follows in the value), sequence u64
//	branch    count × {key's place u32, its length u32, page u64}; places count from the element
//	leaf      count × {flags u32 (1: a bucket), key's place u32, its length u32, value's length u32}
//	freelist  count × page u64; a count of 65535 says that the first of them is the count
const (
	pageHeader   = 16
	metaSize     = 64
	bucketHeader = 16
	element      = 16

	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10

	bucketLeaf = 1
	manyFree   = 0xFFFF
	noFreelist = ^uint64(0)

	magic       = 0xED0CDAED
	version     = 2
	maxPageSize = 64 << 10
	maxSize     = 16 << 30 // bytes; a snapshot takes a few hundred
	maxNested   = 32       // buckets in buckets
)

type meta struct {
	pageSize              uint64
	root, freelist, pages uint64
	txid                  uint64
}

// walk is one Check under way.
type walk struct {
	r io.ReaderAt
	meta
	used []uint64 // a bit a page
}

// Check reads every page of a bbolt file of size bytes that its newest transaction uses: each must be there once, be what it is
// referred to as, and hold its keys in order. An error wraps ErrDamaged, or is one of r.
func Check(r io.ReaderAt, size int64) error {
	if size > maxSize {
		return damaged("it has %d bytes", size)
	}
	m, err := newest(r, size)
	if err != nil {
		return err
	}
	if m.pages < 4 || m.pages > uint64(size)/m.pageSize {
		return damaged("it has %d bytes, and says that it has %d pages of %d", size, m.pages, m.pageSize)
	}
	w := &walk{r: r, meta: m, used: make([]uint64, m.pages/64+1)}
	if err := w.take(0, 2); err != nil { // the metas
		return err
	}
	if err := w.tree(m.root, 0); err != nil {
		return err
	}
	if m.freelist == noFreelist {
		return nil
	}
	return w.free()
}

// newest returns the meta that bbolt would use.
func newest(r io.ReaderAt, size int64) (meta, error) {
	best, err := readMeta(r, 0, size)
	at := []int64{int64(best.pageSize)}
	if err != nil { // bbolt looks for the second one behind a first page of any size
		at = at[:0]
		for n := int64(1024); n <= maxPageSize; n *= 2 {
			at = append(at, n)
		}
	}
	for _, off := range at {
		m, err2 := readMeta(r, off, size)
		if err2 == nil && int64(m.pageSize) == off && (err != nil || m.txid > best.txid) {
			best, err = m, nil
		}
	}
	return best, err
}

func readMeta(r io.ReaderAt, off, size int64) (m meta, err error) {
	var p [pageHeader + metaSize]byte
	if off+int64(len(p)) > size {
		return m, damaged("it has %d bytes", size)
	}
	if _, err := r.ReadAt(p[:], off); err != nil {
		return m, err
	}
	b := p[pageHeader:]
	h := fnv.New64a()
	_, _ = h.Write(b[:56]) // which never fails
	m = meta{
		pageSize: uint64(le.Uint32(b[8:])), root: le.Uint64(b[16:]), freelist: le.Uint64(b[32:]), pages: le.Uint64(b[40:]),
		txid: le.Uint64(b[48:]),
	}
	switch {
	case le.Uint32(b) != magic || le.Uint32(b[4:]) != version || le.Uint64(b[56:]) != h.Sum64():
		return m, damaged("its first pages are wrong")
	case m.pageSize < 512 || m.pageSize > maxPageSize || m.pageSize&(m.pageSize-1) != 0:
		return m, damaged("pages of %d bytes", m.pageSize)
	}
	return m, nil
}

// take notes that n pages from id are used, once.
func (w *walk) take(id, n uint64) error {
	if id >= w.pages || n > w.pages-id {
		return damaged("pages %d+%d of %d", id, n, w.pages)
	}
	for i := id; i < id+n; i++ {
		if w.used[i/64]&(1<<(i%64)) != 0 {
			return damaged("page %d is used twice", i)
		}
		w.used[i/64] |= 1 << (i % 64)
	}
	return nil
}

// page takes and reads a page with all that belongs to it.
func (w *walk) page(id uint64) ([]byte, error) {
	var head [pageHeader]byte
	if id < 2 || id >= w.pages {
		return nil, damaged("page %d of %d", id, w.pages)
	}
	if _, err := w.r.ReadAt(head[:], int64(id*w.pageSize)); err != nil {
		return nil, err
	}
	n := uint64(le.Uint32(head[12:])) + 1
	if err := w.take(id, n); err != nil {
		return nil, err
	}
	p := make([]byte, n*w.pageSize)
	if _, err := w.r.ReadAt(p, int64(id*w.pageSize)); err != nil {
		return nil, err
	}
	if le.Uint64(p) != id {
		return nil, damaged("page %d says that it is %d", id, le.Uint64(p))
	}
	return p, nil
}

// tree walks over the pages of a bucket, which lies in nested others.
func (w *walk) tree(root uint64, nested int) error {
	type span struct {
		id       uint64
		from, to []byte // the least key, and the first one behind; nil for none
	}
	for left := []span{{id: root}}; len(left) > 0; {
		s := left[len(left)-1]
		left = left[:len(left)-1]
		children := len(left)
		p, err := w.page(s.id)
		if err != nil {
			return err
		}
		switch flags := le.Uint16(p[8:]); flags {
		case leafPage:
			err = w.leaf(p, nested)
		case branchPage:
			err = eachKey(p, func(e, key []byte) error {
				if n := len(left); n > children {
					left[n-1].to = key
				}
				left = append(left, span{id: le.Uint64(e[8:]), from: key, to: s.to})
				return nil
			})
			if err == nil && le.Uint16(p[10:]) == 0 {
				err = damaged("a branch of nothing")
			}
		default:
			err = damaged("it is of kind %#x", flags)
		}
		if err != nil {
			return fmt.Errorf("page %d: %w", s.id, err)
		}
		if first, last := ends(p); first != nil && bytes.Compare(first, s.from) < 0 || s.to != nil && bytes.Compare(last, s.to) >= 0 {
			return damaged("page %d is not in its place", s.id)
		}
	}
	return nil
}

// leaf walks over the elements of a leaf, and the buckets among them.
func (w *walk) leaf(p []byte, nested int) error {
	return eachKey(p, func(e, key []byte) error {
		rest := e[uint64(le.Uint32(e[4:]))+uint64(len(key)):]
		if uint64(le.Uint32(e[12:])) > uint64(len(rest)) {
			return damaged("a value goes beyond the page")
		}
		value := rest[:le.Uint32(e[12:])]
		switch flags := le.Uint32(e); {
		case flags == 0:
			return nil
		case flags != bucketLeaf || len(value) < bucketHeader || nested == maxNested:
			return damaged("an element of kind %#x, with %d bytes", flags, len(value))
		}
		if root := le.Uint64(value); root != 0 {
			return w.tree(root, nested+1)
		}
		inline := value[bucketHeader:]
		if len(inline) < pageHeader || le.Uint16(inline[8:]) != leafPage || le.Uint32(inline[12:]) != 0 {
			return damaged("a bucket of %d bytes", len(value))
		}
		return w.leaf(inline, nested+1)
	})
}

// eachKey calls use with each element of a branch or a leaf, from its start to the page's end, and its key.
func eachKey(p []byte, use func(e, key []byte) error) error {
	n, leaf := int(le.Uint16(p[10:])), le.Uint16(p[8:]) == leafPage
	if pageHeader+n*element > len(p) {
		return damaged("it has %d elements", n)
	}
	var before []byte
	for i := range n {
		e := p[pageHeader+i*element:]
		at, size := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:]))
		if leaf {
			at, size = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:]))
		}
		if at < uint64((n-i)*element) || at+size > uint64(len(e)) {
			return damaged("a key lies beyond the page")
		}
		key := e[at : at+size]
		if i > 0 && bytes.Compare(before, key) >= 0 {
			return damaged("keys are not in order")
		}
		before = key
		if err := use(e, key); err != nil {
			return err
		}
	}
	return nil
}

// ends returns the least and the greatest key of a branch or a leaf that eachKey went over, nil if it has none.
func ends(p []byte) (first, last []byte) {
	n, at := int(le.Uint16(p[10:])), 0
	if n == 0 {
		return nil, nil
	}
	if le.Uint16(p[8:]) == leafPage {
		at = 4
	}
	key := func(i int) []byte {
		e := p[pageHeader+i*element:]
		from := le.Uint32(e[at:])
		return e[from : from+le.Uint32(e[at+4:])]
	}
	return key(0), key(n - 1)
}

// free checks that no page which is used is among those that the next transactions take.
func (w *walk) free() error {
	p, err := w.page(w.freelist)
	if err != nil {
		return err
	}
	if le.Uint16(p[8:]) != freelistPage {
		return damaged("page %d is no list of free pages", w.freelist)
	}
	n, ids := uint64(le.Uint16(p[10:])), p[pageHeader:]
	if n == manyFree {
		n, ids = le.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return damaged("%d free pages in a list of %d bytes", n, len(ids))
	}
	for i := range n {
		if err := w.take(le.Uint64(ids[8*i:]), 1); err != nil {
			return fmt.Errorf("free: %w", err)
		}
	}
	return nil
}
