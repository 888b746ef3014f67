package holder

import (
	"os"
	"sync"

	"github.com/remora-storage/remora/blockdev/slots"
)

// Local is a Keeper without a process of its own: what it keeps dies with this process.
type Local struct {
	mu      sync.Mutex // guards the fields below
	groups  map[string]*os.File
	watches map[string]*watch
}

// NewLocal returns a Local. Close must be called.
func NewLocal() *Local {
	return &Local{groups: map[string]*os.File{}, watches: map[string]*watch{}}
}

// Put implements Keeper.
func (l *Local) Put(name string, files ...*os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.groups[name] = files[0]
	return nil
}

// Drop implements Keeper.
func (l *Local) Drop(name string) error {
	l.mu.Lock()
	w := l.watches[name]
	delete(l.watches, name)
	delete(l.groups, name)
	l.mu.Unlock()
	if w != nil {
		w.close()
	}
	return nil
}

// Watch implements Keeper.
func (l *Local) Watch(name string, mem *slots.Slots, emit func(slot int)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	group, err := Dup(l.groups[name])
	if err != nil {
		return err
	}
	file, err := Dup(mem.File())
	if err != nil {
		group.Close()
		return err
	}
	own, err := slots.Open(file)
	if err != nil {
		group.Close()
		return err
	}
	l.watches[name] = startWatch(group, own, emit)
	return nil
}

// Answered implements Keeper.
func (l *Local) Answered(e *Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.watches { // there is one
		w.answered(e.Slot, uint32(e.Sequence))
	}
}

// Close ends reading.
func (l *Local) Close() error {
	l.mu.Lock()
	watches := l.watches
	l.watches = map[string]*watch{}
	l.mu.Unlock()
	for _, w := range watches {
		w.close()
	}
	return nil
}
