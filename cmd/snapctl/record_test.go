package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/control"
)

// recording is a node whose image is not here yet, and that records what is run of it.
func recording(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.lazy(2)
	n.remorad.set(func() {
		n.remorad.record = &controlv1.RecordResponse{Id: "r1", Label: "containerd.io/snapshot/remora.recording"}
		n.remorad.read = []byte(profileText(t, "/bin/sh", "/app/main"))
	})
	return n
}

// TestRecord pulls an image, runs it until it has started, keeps what was read, and leaves no container behind.
func TestRecord(t *testing.T) {
	n := recording(t)
	r := n.run("record", "-o", n.path("app.profile"), n.ref, "--until-line", "Ready", "--env", "WHO=me", "--", "/bin/sh", "-c",
		`echo "Ready, $WHO"; exec sleep 60`)
	contains(t, r.ok(), n.ref+": line printed after", "of 2 files were read", "snapctl profile push "+n.ref)
	contains(t, r.stderr, "is not on this node, pulling it", `recording until the process exits, it prints "Ready" or Ctrl-C`)
	if p, err := os.ReadFile(n.path("app.profile")); err != nil || len(p) == 0 {
		t.Errorf("the file: %d bytes, %v", len(p), err)
	}
	if req := last[*controlv1.AddProfileRequest](t, n.remorad); req.Manifest != n.image.Target.Digest.String() || len(req.Profile) == 0 {
		t.Errorf("added %v", req)
	}
	last[*controlv1.EndRecordingRequest](t, n.remorad)
	made := n.containerd.Snapshots.Made()
	if got := made[len(made)-1].Labels["containerd.io/snapshot/remora.recording"]; got != "r1" {
		t.Errorf("the container's snapshot has the labels %v", made[len(made)-1].Labels)
	}
	eventually(t, "the recording is ended", func() bool { return n.remorad.left() == 1 })
	if left := n.containerd.Containers(t); len(left) > 0 {
		t.Errorf("containers stay: %v", left)
	}

	got := decode[recorded](n.run("--json", "record", n.ref, "--", "/bin/sh", "-c", "echo hello"))
	if got.Ended != "process exited" || got.Output != "hello" || got.Entries != 2 || got.Runs != 1 {
		t.Errorf("as JSON: %+v", got)
	}
}

// TestRecordEnds by a port that is listened on, by time, and by an interrupt.
func TestRecordEnds(t *testing.T) {
	n := recording(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	sleep := []string{"--", "/bin/sh", "-c", "exec sleep 60"}
	contains(t, n.run(append([]string{"record", n.ref, "--until-port", port, "--net-host"}, sleep...)...).ok(), "port "+port+" listened on")
	contains(t, n.run(append([]string{"record", n.ref, "--for", "1ms"}, sleep...)...).ok(), "time is over")
	for { // an interrupt while containerd still starts the process is too early
		r := interrupted(n, append([]string{"record", n.ref}, sleep...)...)
		if r.err == nil {
			contains(t, r.stdout, "interrupted")
			break
		}
		r.fails(1, "context canceled")
	}
}

// interrupted runs a command until a process of it runs in a container, and then interrupts it.
func interrupted(n *node, args ...string) *result {
	n.t.Helper()
	ctx, interrupt := context.WithCancel(n.t.Context())
	defer interrupt()
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		for len(n.containerd.Running()) == 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		interrupt()
	})
	return n.runFor(ctx, args...)
}

// TestRecordFails shows the end of the output of a program that fails, and keeps no profile of it.
func TestRecordFails(t *testing.T) {
	n := recording(t)
	n.run("record", n.ref, "--", "/bin/sh", "-c", "echo what is wrong; exit 3").fails(1, "status 3", "what is wrong")
	n.run("record", n.ref, "--", n.path("none")).fails(1, "start "+n.ref)
	n.remorad.set(func() { n.remorad.read = []byte(profileText(t)) })
	n.run("record", n.ref, "--", "/bin/sh", "-c", "exit 0").fails(1, "nothing of the image was read")
	n.remorad.set(func() { n.remorad.refuse["RecordRequest"] = refusal("no layer is lazy") })
	n.run("record", n.ref, "--", "/bin/sh").fails(1, "record "+n.ref+": no layer is lazy")
	if got := requests[*controlv1.AddProfileRequest](n.remorad); len(got) > 0 {
		t.Errorf("added %v", got)
	}
	if left := n.containerd.Containers(t); len(left) > 0 {
		t.Errorf("containers stay: %v", left)
	}
}

// TestTrace pulls and starts an image, shows what remorad says it did meanwhile, and draws it.
func TestTrace(t *testing.T) {
	n := recording(t)
	layer := n.image.Manifest(t).Layers[0].Digest.String()
	n.remorad.set(func() {
		n.remorad.trace = []*controlv1.TraceResponse{
			{Kind: "resolve", What: n.ref}, {Kind: "profile", What: "registry"}, {Kind: "profile"}, {Kind: "index", Digest: layer},
			{Kind: "index", Digest: layer, What: "of the registry"}, {Kind: "ahead", Digest: layer, Len: 10},
			{Kind: "mount", Digest: layer, What: "fuse-file"},
			{Kind: "fetch", Purpose: "prefetch", Digest: layer, Off: 1 << 20, Len: 1 << 20},
			{Kind: "fetch", Purpose: "demand", Digest: layer, Len: 4096},
			{Kind: "wait", Digest: layer, Len: 4096, Pid: 7, What: "redis", Err: "gone"},
		}
	})
	args := []string{n.ref, "--", "/bin/sh", "-c", "exit 0"}
	said := n.run(append([]string{"trace", "--svg", n.path("start.svg"), "--beside", "remora"}, args...)...).ok()
	contains(t, said, "process exited after", "(cold)", "fetched ahead 1MiB, on demand 4KiB; 1 reads waited, 0.001 s all together",
		"by remora, all of it pulled first",
		"redis (7) waits for 4KiB of", "failed: gone", "there is none", "from the registry", "by fuse-file", "first instruction")
	svg, err := os.ReadFile(n.path("start.svg"))
	if err != nil || !strings.Contains(string(svg), "process exited") {
		t.Errorf("the drawing: %v", err)
	}
	got := decode[traced](n.run(append([]string{"--json", "trace"}, args...)...))
	if got.Cold || got.Prefetched != 1<<20 || got.Demanded != 4096 || got.Waits != 1 || len(got.Spans) < 10 ||
		got.Digest != n.image.Target.Digest {
		t.Errorf("as JSON: %+v", got)
	}
	eventually(t, "the trace is ended", func() bool { return n.remorad.left() == 2 })
	n.remorad.set(func() { n.remorad.refuse["TraceRequest"] = refusal("too busy") })
	n.run(append([]string{"trace"}, args...)...).fails(1, "too busy")
}

// TestTraceTakes events that began before the end.
func TestTraceTakes(t *testing.T) {
	began := time.Now()
	r := new(traced)
	r.take([]*control.TraceEvent{
		{Kind: "fetch", For: "prefetch", Len: 5, Began: began.Add(time.Hour)},
		{Kind: "fetch", For: "background", Len: 7, Began: began.Add(-time.Minute)},
	}, began, began.Add(time.Second))
	if len(r.Spans) != 1 || r.Spans[0].Begin != 0 || r.Prefetched != 7 || r.Spans[0].Lane != "background" {
		t.Errorf("took %+v", r)
	}
}

// TestServeLayer serves what remorad shows of a layer, until either ends.
func TestServeLayer(t *testing.T) {
	n := recording(t)
	file := n.file("layer.erofs", strings.Repeat("x", 1<<16))
	n.remorad.set(func() { n.remorad.expose = file })
	layer := n.image.Manifest(t).Layers[0].Digest.String()
	socket := n.path("nbd.sock")
	serving(n.user, func(said string) {
		contains(t, said, "(64KiB, read-only)")
		if got := greeting(t, "unix", socket); got != "NBDMAGICIHAVEOPT" {
			t.Errorf("greeted with %q", got)
		}
	}, "--unix", socket, n.ref+"@"+layer).ok()
	eventually(t, "the layer is no longer shown", func() bool { return n.remorad.left() == 1 })
	if r := last[*controlv1.ExposeRequest](t, n.remorad); r.Layer != layer || r.Ref != n.ref {
		t.Errorf("asked for %v", r)
	}
	n.remorad.set(func() { n.remorad.refuse["ExposeRequest"] = refusal("it is not lazy") })
	n.run("dev", "serve", "--unix", socket, n.ref+"@"+layer).fails(1, "it is not lazy")
}
