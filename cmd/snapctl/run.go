package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
)

// untilOptions say when a container that is watched has started.
type untilOptions struct {
	line    string
	port    int
	forTime time.Duration
	netHost bool
	env     []string
}

func (o *untilOptions) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.line, "until-line", "", "end when the container prints a line that contains this `text`")
	c.Flags().IntVar(&o.port, "until-port", 0, "end when the container listens on this TCP `port`")
	c.Flags().DurationVar(&o.forTime, "for", 0, "end after this `duration`")
	c.Flags().BoolVar(&o.netHost, "net-host", false, "run in the machine's network instead of one that has loopback alone")
	c.Flags().StringArrayVar(&o.env, "env", nil, "set an environment `variable`, NAME=VALUE; may be repeated")
}

func (o *untilOptions) check() error {
	if o.port < 0 || o.port > 65535 || o.forTime < 0 {
		return cli.Usagef("--until-port wants 1 to 65535, --for a positive duration")
	}
	return nil
}

// words says what ends the run.
func (o *untilOptions) words() string {
	all := []string{"the process exits"}
	if o.line != "" {
		all = append(all, fmt.Sprintf("it prints %q", o.line))
	}
	if o.port != 0 {
		all = append(all, fmt.Sprintf("it listens on port %d", o.port))
	}
	if o.forTime != 0 {
		all = append(all, o.forTime.String()+" are over")
	}
	return strings.Join(all, ", ") + " or Ctrl-C"
}

// A runResult says how a container started. The times are on one clock.
type runResult struct {
	created, started, ready time.Time
	ended                   string // what ended the wait
	exit                    uint32
	output                  string // the end of what it printed
}

// lineWatch closes found when a line with some text has been written.
type lineWatch struct {
	text  string
	found chan struct{}

	mu   sync.Mutex // guards the fields below
	line []byte
	last []byte // the end of all that was written
	done bool
}

const outputKept = 2000

func (l *lineWatch) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = append(l.last, p...)
	if n := len(l.last) - outputKept; n > 0 {
		l.last = l.last[n:]
	}
	l.line = append(l.line, p...)
	if l.text != "" && !l.done && bytes.Contains(l.line, []byte(l.text)) {
		l.done = true
		close(l.found)
	}
	if i := bytes.LastIndexByte(l.line, '\n'); i >= 0 {
		l.line = append(l.line[:0], l.line[i+1:]...)
	} else if len(l.line) > 1<<20 {
		l.line = l.line[:0]
	}
	return len(p), nil
}

func (l *lineWatch) output() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.last))
}

const runPoll = 5 * time.Millisecond // how often it is looked whether a port is listened on

// runOnce runs a container of an image until it has started, then ends and removes it. labels are
// its snapshot's. before is called when it has started and still runs.
func (a *app) runOnce(ctx context.Context, c *client.Client, img client.Image, snapshotter string, args []string, o untilOptions,
	labels map[string]string, before func() error) (r runResult, err error) {
	cleanup := context.WithoutCancel(ctx)
	id := "snapctl-" + strings.ToLower(rand.Text()[:12])
	specs := []oci.SpecOpts{oci.WithImageConfigArgs(img, args), oci.WithEnv(o.env)}
	if o.netHost {
		specs = append(specs, oci.WithHostNamespace("network"), oci.WithHostHostsFile, oci.WithHostResolvconf)
	}
	container, err := c.NewContainer(ctx, id,
		client.WithImage(img), client.WithSnapshotter(snapshotter),
		client.WithNewSnapshot(id, img, snapshots.WithLabels(labels)), client.WithNewSpec(specs...))
	if err != nil {
		return r, fmt.Errorf("create a container of %s: %w", img.Name(), err)
	}
	defer func() { err = errors.Join(err, container.Delete(cleanup, client.WithSnapshotCleanup)) }()
	watch := &lineWatch{text: o.line, found: make(chan struct{})}
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, watch, watch), cio.WithFIFODir(a.fifos)))
	if err != nil {
		return r, fmt.Errorf("create the container's process: %w", err)
	}
	defer func() {
		if _, derr := task.Delete(cleanup, client.WithProcessKill); derr != nil {
			err = errors.Join(err, fmt.Errorf("remove the container's process: %w", derr))
		}
	}()
	exit, err := task.Wait(cleanup)
	if err != nil {
		return r, err
	}
	r.created = time.Now()
	if err := task.Start(ctx); err != nil {
		return r, fmt.Errorf("start %s: %w", img.Name(), err)
	}
	r.started = time.Now()
	poll := time.NewTicker(runPoll)
	defer poll.Stop()
	limit := make(<-chan time.Time)
	if o.forTime > 0 {
		timer := time.NewTimer(o.forTime)
		defer timer.Stop()
		limit = timer.C
	}
	for r.ended == "" {
		select {
		case st := <-exit:
			r.ended, r.exit = "process exited", st.ExitCode()
			task.IO().Wait() // the last of what it printed
			if r.exit != 0 && o.forTime == 0 {
				return r, fmt.Errorf("the container's process ended with status %d; the end of its output:\n%s", r.exit, watch.output())
			}
		case <-watch.found:
			r.ended = "line printed"
		case <-limit:
			r.ended = "time is over"
		case <-poll.C:
			if o.port != 0 && listens(task.Pid(), o.port) {
				r.ended = "port " + strconv.Itoa(o.port) + " listened on"
			}
		case <-ctx.Done():
			r.ended = "interrupted"
		}
	}
	r.ready = time.Now()
	r.output = watch.output()
	return r, before()
}

// listens reports whether anything in a process's network listens on a TCP port.
func listens(pid uint32, port int) bool {
	want := fmt.Sprintf(":%04X", port)
	for _, name := range []string{"tcp", "tcp6"} {
		p, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if err != nil {
			continue // it has ended, which is seen elsewhere
		}
		for line := range strings.Lines(string(p)) {
			// sl local_address rem_address st ...: 0A is LISTEN
			if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], want) {
				return true
			}
		}
	}
	return false
}

// imageArgs splits "IMAGE [-- CMD...]".
func imageArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 || (len(args) > 1 && cmd.ArgsLenAtDash() != 1) {
		return cli.Usagef("want IMAGE, then -- and the command if it is not the image's own (see %s --help)", cmd.CommandPath())
	}
	return nil
}
