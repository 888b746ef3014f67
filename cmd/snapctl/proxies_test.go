package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestProxyOf: the variables are read as Go's HTTP client reads them.
func TestProxyOf(t *testing.T) {
	for _, c := range []struct {
		environ []string
		want    string
	}{
		{nil, ""},
		{[]string{"HTTP_PROXY=http://a:1"}, "http://a:1"},
		{[]string{"http_proxy=http://b:2"}, "http://b:2"},
		{[]string{"http_proxy=http://b:2", "HTTP_PROXY=http://a:1"}, "http://a:1"},
		{[]string{"HTTP_PROXY=", "http_proxy=http://b:2"}, "http://b:2"},
		{[]string{"HTTP_PROXY_OTHER=http://a:1"}, ""},
	} {
		if got := proxyOf(c.environ, "HTTP_PROXY"); got != c.want {
			t.Errorf("%q: got %q, want %q", c.environ, got, c.want)
		}
	}
}

// TestProxyFinding: nobody sees a password, and what cannot be compared is said.
func TestProxyFinding(t *testing.T) {
	got := withoutPassword("http://me:secret@proxy.test:3128")
	if strings.Contains(got, "secret") || !strings.Contains(got, "proxy.test:3128") {
		t.Errorf("got %s", got)
	}
	none := filepath.Join(t.TempDir(), "none.sock")
	if f := proxyFinding(none, none); f.Result != warning || !strings.Contains(f.Detail, none) || f.Fix == "" {
		t.Errorf("%+v", f)
	}
	socket := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	environ, err := environOf(socket)
	if err != nil || !slices.Contains(environ, "PATH="+os.Getenv("PATH")) {
		t.Errorf("got %q, %v", environ, err)
	}
	if f := proxyFinding(socket, socket); f.Result != ok {
		t.Errorf("%+v", f)
	}
}
