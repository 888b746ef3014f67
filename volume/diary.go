package volume

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/store"
)

// A Diary is where a node keeps what it wrote last into its lease in one store. By that its next life knows the lease as its
// own, and its daemon as dead: the same machine, the same start of it and the same id may be a copy's, too.
type Diary interface {
	// Read returns what was written last, zero if nothing was.
	Read() (DiaryEntry, error)
	// Write returns when the next life of the daemon will read the entry, and that of the machine, if its Next has another
	// incarnation than that of the entry before.
	Write(e DiaryEntry) error
}

// A DiaryEntry is what a lease may show: what was seen in it, or what is to replace that.
type DiaryEntry struct{ Last, Next Word }

// A Word is one writing of a lease. Nobody else makes the same.
type Word struct{ Incarnation, Nonce ID }

func (s *memberState) word() Word { return Word{s.Incarnation, s.Nonce} }

// has reports whether a lease's object is as its node left it, as far as that knows.
func (e DiaryEntry) has(w Word) bool { return w != (Word{}) && (w == e.Last || w == e.Next) }

// A DiaryFile is a Diary in a file. It is overwritten in its place: a power cut in the middle leaves nothing that could be
// read, and no lease is known without waiting after one.
type DiaryFile struct {
	path string
	life ID // that is on stable storage
}

// NewDiaryFile returns the Diary in a file, which need not be there.
func NewDiaryFile(path string) *DiaryFile { return &DiaryFile{path: path} }

// Read implements Diary. What is damaged says nothing.
func (d *DiaryFile) Read() (e DiaryEntry, err error) {
	p, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return e, nil
	}
	if err != nil {
		return e, err
	}
	e, _ = decodeDiary(p)
	return e, nil
}

func (e *DiaryEntry) ids() []*ID {
	return []*ID{&e.Last.Incarnation, &e.Last.Nonce, &e.Next.Incarnation, &e.Next.Nonce}
}

// encode returns the four ids, each on a line.
func (e DiaryEntry) encode() (p []byte) {
	for _, id := range e.ids() {
		p = append(hex.AppendEncode(p, id[:]), '\n')
	}
	return p
}

func decodeDiary(p []byte) (e DiaryEntry, ok bool) {
	ids := e.ids()
	if len(p) != len(e.encode()) {
		return e, false
	}
	lines := bytes.Split(p, []byte("\n"))
	if len(lines) != len(ids)+1 {
		return e, false
	}
	for i, id := range ids {
		var err error
		if *id, err = ParseID(string(lines[i])); err != nil {
			return DiaryEntry{}, false
		}
	}
	return e, true
}

// Write implements Diary.
func (d *DiaryFile) Write(e DiaryEntry) (err error) {
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(io.NewOffsetWriter(f, 0), bytes.NewReader(e.encode())); err != nil {
		return err
	}
	if d.life == e.Next.Incarnation {
		return nil
	}
	if err := errors.Join(f.Sync(), durable.SyncDir(filepath.Dir(d.path))); err != nil {
		return err
	}
	d.life = e.Next.Incarnation
	return nil
}

// LastShown reports whether a store shows what a node wrote last into its lease there. One that never wrote any has nothing
// to see.
func LastShown(ctx context.Context, st store.Store, node ID, diary Diary) (bool, error) {
	e, err := diary.Read()
	if err != nil || e == (DiaryEntry{}) {
		return err == nil, err
	}
	s, _, err := readMember(ctx, st, node)
	if errors.Is(err, store.ErrNoObject) || errors.Is(err, ErrCorrupt) {
		return false, nil
	}
	return err == nil && e.has(s.word()), err
}

// Shown reports whether a store shows what this node writes into its lease now: whether it is the Member's, by another way.
func (m *Member) Shown(ctx context.Context, st store.Store) (bool, error) {
	if err := m.Acquire(ctx); err != nil {
		return false, err
	}
	defer m.Release()
	if err := m.renewNow(ctx); err != nil { // what was there until now a copy may have, too
		return false, err
	}
	for {
		before, sent := m.words()
		s, _, err := readMember(ctx, st, m.opts.ID)
		switch {
		case errors.Is(err, store.ErrNoObject), errors.Is(err, ErrCorrupt):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("read the lease of this node: %w", err)
		case s.word() == before, s.word() == sent:
			return true, nil
		}
		if now, _ := m.words(); now == before { // it did not change between
			return false, nil
		}
	}
}

// renewNow returns when the lease was renewed since it was called.
func (m *Member) renewNow(ctx context.Context) error {
	m.hurryUp()
	begin, _ := m.words()
	for {
		m.mu.Lock()
		err, now, changed := m.err, m.state.word(), m.changed
		m.mu.Unlock()
		if err != nil || now != begin {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("renew the lease%s: %w", m.why(), context.Cause(ctx))
		}
	}
}

// words are what this node wrote last, and what it was about to write.
func (m *Member) words() (last, sent Word) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.word(), m.sent
}

type noDiary struct{}

func (noDiary) Read() (e DiaryEntry, err error) { return e, nil }
func (noDiary) Write(DiaryEntry) error          { return nil }
