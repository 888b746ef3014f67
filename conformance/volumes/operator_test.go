package volumes_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/fsx"
)

// patience is how long an operator waits for what must come. It says nothing of how fast that should be.
const patience = 2 * time.Minute

// An operation is a command of snapctl under way, or that has ended.
type operation struct {
	words       string
	cmd         *exec.Cmd
	out, says   bytes.Buffer
	done        chan struct{}
	interrupted bool
	code        int // once done is closed; -1 if a signal ended it
}

// begin begins a verb of snapctl volume.
func begin(s *testbed.Stack, args ...string) (*operation, error) {
	c, err := testbed.Command(context.Background(), "snapctl", append([]string{"volume"}, args...)...)
	if err != nil {
		return nil, err
	}
	o := &operation{words: strings.Join(args, " "), cmd: c, done: make(chan struct{})}
	c.Env = append(c.Env, s.SnapctlEnv()...)
	c.Stdout, c.Stderr = &o.out, &o.says
	if err := c.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.Wait() // the code says it
		o.code = c.ProcessState.ExitCode()
		close(o.done)
	}()
	return o, nil
}

// interrupt is Ctrl-C.
func (o *operation) interrupt() {
	o.interrupted = true
	_ = o.cmd.Process.Signal(os.Interrupt) // it may have ended
}

// wait returns when the verb has ended. It is an error that it does not.
func (o *operation) wait() error {
	select {
	case <-o.done:
		return nil
	case <-time.After(patience):
		_ = o.cmd.Process.Kill()
		<-o.done
		return fmt.Errorf("%s does not end: %s", o.words, o.says.String())
	}
}

// answer is what the verb said, with its code.
func (o *operation) answer() string {
	return fmt.Sprintf("%s: exit code %d: %s", o.words, o.code, strings.TrimSpace(o.out.String()+o.says.String()))
}

// nonsense is what no verb may say, whatever is done beside it.
var nonsense = []string{"panic", "goroutine ", "no file system is known", "has been written to", "corrupt", "%!"}

// sane insists that a verb that has ended said something that an operator can use.
func (o *operation) sane() error {
	switch {
	case o.code == 0 || o.code == 1 || o.code == -1 && o.interrupted:
	default:
		return errors.New(o.answer())
	}
	for _, s := range nonsense {
		if strings.Contains(o.says.String(), s) {
			return errors.New(o.answer())
		}
	}
	if strings.Contains(o.says.String(), "context canceled") && !o.interrupted { // that was somebody else's Ctrl-C
		return errors.New(o.answer())
	}
	return nil
}

// An operated volume is one that operators do things to, on any node that has a directory for it.
type operated struct {
	store, name, class string
	written            uint64 // what its file says
}

// operatedSize is what a volume has that is made anew.
const operatedSize = 64 << 20

// verb returns the command line of a verb about the volume, which is mounted on dir.
func (v *operated) verb(name, dir string) []string {
	switch name {
	case "create":
		return []string{"create", "--store", v.store, "--class", v.class, v.name, fmt.Sprint(operatedSize)}
	case "mount":
		return []string{"mount", "--store", v.store, v.name, dir}
	case "keep":
		return []string{"umount", "--keep-attached", "--store", v.store, v.name}
	case "abandon":
		return []string{"detach", "--abandon-to-journal", "--store", v.store, v.name}
	case "grow":
		return []string{"resize", "--store", v.store, v.name, fmt.Sprint(operatedSize + 16<<20)}
	case "ls":
		return []string{"ls", "--store", v.store}
	}
	return []string{name, "--store", v.store, v.name} // attach, detach, umount, inspect, fsck, rm
}

// operatorsVerbs are those of operated.verb.
var operatorsVerbs = []string{"create", "attach", "detach", "abandon", "mount", "umount", "keep", "grow", "rm", "fsck", "ls", "inspect"}

// do gives a verb, which must succeed.
func (v *operated) do(s *testbed.Stack, name, dir string) (string, error) {
	o, err := begin(s, v.verb(name, dir)...)
	if err == nil {
		err = o.wait()
	}
	if err != nil {
		return "", err
	}
	if o.code != 0 {
		return "", errors.New(o.answer())
	}
	return strings.TrimSpace(o.out.String()), nil
}

// A listing is what ls says of a volume.
type listing struct {
	Name, ID, FS, Owner, State, Device, Failed, Error string
	Here                                              bool
	Size                                              int64 `json:"size_bytes"`
}

// listed is what ls says of the volume on a node; nil if there is none of its name.
func (v *operated) listed(s *testbed.Stack) (*listing, error) {
	o, err := begin(s, append(v.verb("ls", ""), "--json")...)
	if err == nil {
		err = o.wait()
	}
	if err == nil && o.code != 0 {
		err = errors.New(o.answer())
	}
	if err != nil {
		return nil, err
	}
	var all struct{ Volumes []listing }
	if err := json.Unmarshal(o.out.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("ls: %w: %s", err, o.out.String())
	}
	for _, l := range all.Volumes {
		if l.Name == v.name {
			return &l, nil
		}
	}
	return nil, nil
}

// settled is what ls says of the volume on a node once nothing is being done with it there.
func (v *operated) settled(s *testbed.Stack) (l *listing, err error) {
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if l, err = v.listed(s); err != nil || l == nil {
			return l, err
		}
		if l.Error != "" || l.Failed != "" { // a removal that was cut short is one
			return l, nil
		}
		if l.State == "attached" && l.Device != "" || l.State == "absent" && l.Device == "" {
			return l, nil
		}
		if time.Now().After(end) {
			return l, fmt.Errorf("%s does not come to rest: %+v", v.name, *l)
		}
	}
}

// truthful insists that ls says what is so: the kernel has the device, and nothing is mounted below dir but that.
func (v *operated) truthful(l *listing, dir string) error {
	under, err := mounts.Under(filepath.Dir(dir))
	if err != nil {
		return err
	}
	if l == nil || l.Device == "" {
		if len(under) > 0 {
			return fmt.Errorf("%s is mounted on %s, and ls says %+v", v.name, under[0].Dir, l)
		}
		return nil
	}
	on, err := mounts.On(l.Device)
	if err != nil {
		return fmt.Errorf("ls says %+v: %w", *l, err)
	}
	for _, m := range under {
		if !on(m) {
			return fmt.Errorf("%s is mounted on %s, and ls says %+v", m.Source, m.Dir, *l)
		}
	}
	return nil
}

const operatedBlock = 4096 // bytes of what is written to a volume's file at once

// pattern is what the file of a volume says when it was written for the nth time.
func (v *operated) pattern(n uint64) []byte {
	p := fsx.OnPage(64 * operatedBlock)
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], n)
		copy(p[i+8:i+16], v.name)
	}
	return p
}

// write writes the volume's file anew, and flushes it.
func (v *operated) write(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	v.written++
	_, err = f.WriteAt(v.pattern(v.written), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// holds insists that the volume's file is what was written last, past the page cache.
func (v *operated) holds(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	got, want := fsx.OnPage(64*operatedBlock), v.pattern(v.written)
	n, err := f.ReadAt(got, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if !bytes.Equal(got[:n], want) {
		return fmt.Errorf("%s has write %d, and %d was flushed", v.name, binary.LittleEndian.Uint64(got), v.written)
	}
	return nil
}

// whole insists that the file system of a volume that is attached and not mounted has no fault, and the volume none.
func (v *operated) whole(s *testbed.Stack, dev string) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	check := testbed.FileSystems[0].Check
	if out, err := testbed.Output(ctx, nil, check[0], append(check[1:len(check):len(check)], dev)...); err != nil {
		return fmt.Errorf("%s: %w\n%s", v.name, err, out)
	}
	_, err := v.do(s, "fsck", "")
	return err
}
