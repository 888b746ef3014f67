package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Task is one thing to be done with a volume's device.
type Task struct {
	Volume Volume
	Bring  *Place // mount it there
	Finish bool   // make a file system again that was not made to its end, unless somebody may have made one there since
	Grow   bool   // make the mounted file system as large as the device
	Free   bool   // unmount it everywhere; each place is said
}

// message is what the process that does a task says. Note and Store are answered by an answer.
type message struct {
	Say, Note string
	Store     bool
	Done      bool
	Err       string // with Done
}

// answer is what became of a Note or a Store.
type answer struct{ Err string }

// Apart has a task done by a process of its own, which calls Serve. Whoever serves the device must be fit to be killed, and nobody is who
// waits for a device: a mount, an unmount or a read of it. The process goes on when this one has ended, up to its next message.
func Apart(ctx context.Context, c *exec.Cmd, t Task, say func(string)) error {
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	to, err := c.StdinPipe()
	if err != nil {
		return err
	}
	from, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	err = t.direct(ctx, to, from, say)
	// It has said its last word, or was not understood: then it ends at its next one.
	if werr := errors.Join(to.Close(), c.Wait()); err == nil {
		err = werr
	}
	return err
}

// direct tells the process what to do, and does what it asks for.
func (t Task) direct(ctx context.Context, to io.Writer, from io.Reader, say func(string)) error {
	out, in := json.NewEncoder(to), json.NewDecoder(from)
	if err := out.Encode(t); err != nil {
		return err
	}
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			return fmt.Errorf("the process that works on %s has ended: %w", t.Volume.Device, err)
		}
		var err error
		switch {
		case m.Done && m.Err != "":
			return errors.New(m.Err)
		case m.Done:
			return nil
		case m.Say != "":
			say(m.Say)
			continue
		case m.Store:
			err = t.Volume.Store(ctx)
		default:
			err = t.Volume.Note(ctx, m.Note)
		}
		if err := out.Encode(answer{textOf(err)}); err != nil {
			return err
		}
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Serve does the task that it reads.
func Serve(from io.Reader, to io.Writer) error {
	resign()
	in, out := json.NewDecoder(from), json.NewEncoder(to)
	var t Task
	if err := in.Decode(&t); err != nil {
		return fmt.Errorf("read what is to be done: %w", err)
	}
	ask := func(m message) error {
		var a answer
		if err := errors.Join(out.Encode(m), in.Decode(&a)); err != nil {
			return err
		}
		if a.Err != "" {
			return errors.New(a.Err)
		}
		return nil
	}
	t.Volume.Note = func(_ context.Context, fs string) error { return ask(message{Note: fs}) }
	t.Volume.Store = func(context.Context) error { return ask(message{Store: true}) }
	err := t.do(func(what string) {
		_ = out.Encode(message{Say: what}) // whoever is not there any longer is missed at the next question
	})
	return out.Encode(message{Done: true, Err: textOf(err)})
}

// resign gives back what the kernel grants to whoever serves devices: neither this process nor a mkfs that it starts is spared when
// memory is short, or may take the last of it. What the kernel refuses stays as it was.
func resign() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	_, _, _ = syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0, 0)
}

// do does it. The device stays open meanwhile, so that no other bytes can be there.
func (t Task) do(say func(string)) error {
	f, err := os.Open(t.Volume.Device)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, v := context.Background(), t.Volume
	switch {
	case t.Bring != nil:
		return Bring(ctx, v, *t.Bring, say)
	case t.Finish:
		_, err := Prepare(ctx, v, "", true, say)
		if left := (unfinished{}); errors.As(err, &left) { // whoever mounts it is refused
			say(left.Error())
			return nil
		}
		return err
	case t.Grow:
		dirs, err := On(v.Device)
		if err != nil || len(dirs) == 0 || v.FS == "" || HalfMade(v.FS) != "" {
			return err
		}
		return Grow(v.FS, v.Device, dirs[0])
	case t.Free:
		return Free(ctx, v.Device, say)
	}
	return errors.New("nothing is to be done")
}
