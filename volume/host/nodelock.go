package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/volume"
)

// nodeLock keeps a second process of the machine from being the same node, as one would be whose root is a copy. It ends with the
// process.
type nodeLock struct{ f *os.File }

// lockPatience is how long a process that has ended may take to let its lock go.
const lockPatience = 5 * time.Second

// lockNode takes the lock of a node, which is a file in dir that says who has it.
func lockNode(dir string, id volume.ID, root string) (*nodeLock, error) {
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, id.String())
	for end := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		f, err := tryLock(path)
		if err == nil && f != nil {
			l := &nodeLock{f}
			return l, l.writeWho(root)
		}
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock node %s: %w", id, err)
		}
		if time.Now().After(end) {
			who, _ := os.ReadFile(path) // for people
			return nil, fmt.Errorf("node %s is served already, by %s: one of the two roots is a copy of the other; start this one with "+
				"a --root of its own, or remove %s, which makes it another node", id, strings.TrimSpace(string(who)), root)
		}
	}
}

// tryLock returns a locked file, or nil if it was removed meanwhile.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && st.Nlink > 0 {
		return f, nil
	}
	f.Close() // nothing was written
	if errors.Is(err, unix.EINTR) {
		err = nil
	}
	return nil, err
}

// writeWho says who has the lock.
func (l *nodeLock) writeWho(root string) error {
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err := fmt.Fprintf(l.f, "process %d with %s\n", os.Getpid(), root)
	return err
}

// Close lets the lock go.
func (l *nodeLock) Close() error {
	if l == nil {
		return nil
	}
	return errors.Join(os.Remove(l.f.Name()), l.f.Close())
}
