package main

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// TestLineWatch finds a text that comes in pieces, in one line only, and keeps the end of all that was printed.
func TestLineWatch(t *testing.T) {
	for name, c := range map[string]struct {
		writes []string
		want   bool
	}{
		"in one":             {[]string{"is Ready now\n"}, true},
		"in pieces":          {[]string{"is Re", "ad", "y"}, true},
		"in two lines":       {[]string{"is Re\n", "ady"}, false},
		"not":                {[]string{"ready\n", "set\n"}, false},
		"twice":              {[]string{"Ready\n", "Ready\n"}, true},
		"after a long line":  {[]string{strings.Repeat("x", 2<<20), "Ready"}, true},
		"across a long line": {[]string{strings.Repeat("x", 2<<20) + "Re", "ady"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := &lineWatch{text: "Ready", found: make(chan struct{})}
			all := ""
			for _, w := range c.writes {
				if n, err := io.WriteString(l, w); n != len(w) || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
				all += w
			}
			select {
			case <-l.found:
				if !c.want {
					t.Error("found")
				}
			default:
				if c.want {
					t.Error("not found")
				}
			}
			if want := strings.TrimSpace(all[max(0, len(all)-outputKept):]); l.output() != want {
				t.Errorf("kept %d bytes, want %d", len(l.output()), len(want))
			}
		})
	}
}

// TestListens tells ports that are listened on from others.
func TestListens(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pid, port := uint32(os.Getpid()), l.Addr().(*net.TCPAddr).Port
	if !listens(pid, port) {
		t.Error("a port that is listened on is not found")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if listens(pid, port) {
		t.Error("a port that was listened on is found")
	}
	if listens(1<<30, port) {
		t.Error("a process that is not there listens")
	}
}

// TestUntilWords says everything that ends a run.
func TestUntilWords(t *testing.T) {
	o := untilOptions{line: "Ready", port: 80, forTime: time.Minute}
	if got, want := o.words(), `the process exits, it prints "Ready", it listens on port 80, 1m0s are over or Ctrl-C`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// TestUntilUsage refuses what cannot end a run.
func TestUntilUsage(t *testing.T) {
	u := newUser(t)
	for _, verb := range []string{"record", "trace"} {
		u.run(verb).fails(2, "want IMAGE")
		u.run(verb, "app", "sh").fails(2, "want IMAGE, then --")
		u.run(verb, "--until-port", "70000", "app").fails(2, "1 to 65535")
		u.run(verb, "--for", "-1s", "app").fails(2, "a positive duration")
		u.run(verb, "No Such Image").fails(2, "No Such Image")
	}
}
