package registry

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// What a server of HTTP/2 may do in the middle of an answer (RFC 9113, sections 6.4 and 6.8).
const (
	frameData      = 0x0
	frameHeaders   = 0x1
	frameRSTStream = 0x3
	frameGoAway    = 0x7
)

func frame(kind byte, stream uint32, payload ...uint32) []byte {
	f := []byte{0, 0, byte(4 * len(payload)), kind, 0}
	f = binary.BigEndian.AppendUint32(f, stream)
	for _, p := range payload {
		f = binary.BigEndian.AppendUint32(f, p)
	}
	return f
}

// A breaker passes connections of HTTP/2 to a server, and puts a frame behind some bytes of each answer, or ends the connection.
type breaker struct {
	to     string
	breaks func(stream uint32) (put []byte, end bool)
	after  int
	early  bool         // instead of the first answer's headers
	count  atomic.Int64 // connections
}

// serve passes one connection.
func (b *breaker) serve(client net.Conn) {
	defer client.Close()
	early := b.count.Add(1) == 1 && b.early
	server, err := net.Dial("tcp", b.to)
	if err != nil {
		return
	}
	var up sync.WaitGroup
	defer up.Wait()
	defer server.Close()
	up.Go(func() {
		_, _ = io.Copy(server, client) // until one of both ends
		server.Close()
	})
	defer client.Close()
	passed := 0
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(server, head); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(server, payload); err != nil {
			return
		}
		if head[3] == frameHeaders && early {
			put, _ := b.breaks(binary.BigEndian.Uint32(head[5:]))
			_, _ = client.Write(put) // the connection ends anyway
			return
		}
		if _, err := client.Write(append(head, payload...)); err != nil {
			return
		}
		if head[3] != frameData {
			continue
		}
		if passed += len(payload); passed >= b.after {
			put, end := b.breaks(binary.BigEndian.Uint32(head[5:]))
			if _, err := client.Write(put); err != nil || end {
				return
			}
			passed = 0
		}
	}
}

// TestGoAway: a reader of a range sees nothing of a server that sends its clients away, gives up a stream or a connection in the
// middle of an answer: what is left comes by the next request. containerd speaks HTTP/1.1 to registries, and so do we; only places
// that layers name themselves are asked by HTTP/2.
func TestGoAway(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<15)
	last := uint32(1<<31 - 1)
	nowhere := t.TempDir() // has a registry of which no host may be asked
	if err := errors.Join(os.Mkdir(filepath.Join(nowhere, "reg.test"), 0o755),
		os.WriteFile(filepath.Join(nowhere, "reg.test", "hosts.toml"), []byte(`capabilities = ["push"]`+"\nserver = \"reg.test\""), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		breaks func(stream uint32) (put []byte, end bool)
		more   bool // connections are needed
	}{
		{"GOAWAY, and the answer goes on", func(uint32) ([]byte, bool) { return frame(frameGoAway, 0, last, 0), false }, true},
		{"GOAWAY, and the answer is dropped", func(uint32) ([]byte, bool) { return frame(frameGoAway, 0, 0, 0), false }, true},
		{"GOAWAY for an error", func(uint32) ([]byte, bool) { return frame(frameGoAway, 0, last, 2), true }, true},
		{"GOAWAY for calm, of another stream", func(uint32) ([]byte, bool) { return frame(frameGoAway, 0, 0, 11), true }, true},
		{"GOAWAY, and the end", func(uint32) ([]byte, bool) { return frame(frameGoAway, 0, last, 0), true }, true},
		{"the stream is reset", func(s uint32) ([]byte, bool) { return frame(frameRSTStream, s, 2), false }, false},
		{"the stream is refused", func(s uint32) ([]byte, bool) { return frame(frameRSTStream, s, 7), false }, false},
		{"the connection ends", func(uint32) ([]byte, bool) { return nil, true }, true},
	} {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ", early: ", early), func(t *testing.T) {
				var asked atomic.Int64
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					if r.ProtoMajor != 2 {
						t.Errorf("asked by %s", r.Proto)
					}
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
				}))
				srv.Config.ErrorLog = log.New(io.Discard, "", 0)
				srv.Config.Protocols = new(http.Protocols)
				srv.Config.Protocols.SetUnencryptedHTTP2(true)
				srv.Start()
				defer srv.Close()
				b := &breaker{to: srv.Listener.Addr().String(), breaks: c.breaks, after: 100_000, early: early}
				at := b.listen(t)
				r := New(Options{ConfigPath: []string{nowhere}, PrivatePlaces: true, Retry: Retry{Attempts: 3, First: time.Millisecond}})
				t.Cleanup(r.elsewhere.CloseIdleConnections)
				r.elsewhere.Transport.(*router).own.TLSClientConfig.InsecureSkipVerify = true
				blob := r.Blob(Repository{Host: "reg.test", Path: "a"}, digest.FromBytes(body), int64(len(body)))
				got := make([]byte, len(body))
				for range 3 { // the next request works, too
					n, err := blob.WithURLs([]string{"https://" + at + "/layer"}).ReadAt(t.Context(), got, 0)
					if err != nil || !bytes.Equal(got, body) {
						t.Fatalf("%d of %d bytes, %v", n, len(body), err)
					}
				}
				t.Logf("%d requests, %d connections", asked.Load(), b.count.Load())
				if c.more && b.count.Load() < 2 || asked.Load() < 3 {
					t.Errorf("%d requests by %d connections", asked.Load(), b.count.Load())
				}
			})
		}
	}
}

// listen takes connections until the test ends.
func (b *breaker) listen(t *testing.T) (addr string) {
	t.Helper()
	ts := httptest.NewUnstartedServer(nil)
	ts.StartTLS() // for its certificate
	cert := ts.TLS.Certificates
	ts.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: cert, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { b.serve(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}
