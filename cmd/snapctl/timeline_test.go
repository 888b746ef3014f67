package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file under testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (rewrite it with -update and look at the difference); got:\n%s", path, got)
	}
}

// timeline is a start with something in every lane.
func timeline() *traced {
	at := func(lane, name string, begin, took int, n int64) span {
		return span{Lane: lane, Name: name, Begin: time.Duration(begin) * time.Millisecond, Took: time.Duration(took) * time.Millisecond,
			Bytes: n}
	}
	return &traced{
		Image: "r.example.com/app:1 & <co>", Ended: "line printed", Seconds: 0.75, Cold: true, Prefetched: 3 << 20, Demanded: 4096, Waits: 1,
		WaitSeconds: 0.02,
		Beside:      "overlayfs", BesideSecs: 1.5,
		Spans: []span{
			at("snapctl", "pull", 0, 300, 0), at("resolve", "app:1", 5, 40, 0), at("profile", "from the registry", 45, 20, 0),
			at("index", "sha256:0123", 45, 60, 0), at("import", "sha256:4567", 45, 200, 0), at("image", "sha256:0123", 105, 5, 0),
			at("mount", "sha256:0123 by precontent", 250, 2, 0), at("ahead", "sha256:0123 at 0B", 45, 100, 1<<20),
			at("prefetch", "sha256:0123 at 1MiB", 110, 150, 1<<20), at("prefetch", "sha256:0123 at 2MiB", 120, 80, 1<<20),
			at("background", "late", 740, 500, 1<<20), at("demand", "sha256:0123 at 8MiB", 500, 20, 4096),
			{Lane: "wait", Name: "redis (7) waits", Begin: 500 * time.Millisecond, Took: 20 * time.Millisecond, Bytes: 4096,
				Err: "the registry is away"},
			at("snapctl", "create container", 300, 100, 0), at("snapctl", "first instruction", 400, 50, 0),
			at("snapctl", "until line printed", 450, 300, 0),
			at(besideLane, "pull all of it", 0, 1500, 0),
		},
	}
}

// TestTimeline draws a start.
func TestTimeline(t *testing.T) {
	svg := timeline().draw()
	golden(t, "timeline.svg", svg)
	for dec := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if empty := (&traced{Image: "app"}).draw(); !bytes.Contains(empty, []byte("</svg>")) {
		t.Errorf("nothing at all is drawn as %s", empty)
	}
}

// TestTraceText lists a start.
func TestTraceText(t *testing.T) {
	var b bytes.Buffer
	timeline().human(&b)
	golden(t, "trace.txt", b.Bytes())
	warm := &traced{Image: "app", Ended: "process exited"}
	b.Reset()
	warm.human(&b)
	contains(t, b.String(), "warm: the image was on this node")
}

// TestGridStep has about ten lines for every length.
func TestGridStep(t *testing.T) {
	for end, want := range map[time.Duration]time.Duration{
		0: time.Millisecond, 12 * time.Millisecond: time.Millisecond, 13 * time.Millisecond: 2 * time.Millisecond,
		750 * time.Millisecond: 100 * time.Millisecond, time.Minute: 5 * time.Second,
	} {
		if got := gridStep(end); got != want {
			t.Errorf("%v: got %v, want %v", end, got, want)
		}
	}
}
