package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// An Export is a device under a name.
type Export struct {
	Name        string // may be empty: what clients get that name none
	Description string
	Device      blockdev.Device // a Writer may be written to
}

// Options of a server. The zero value works.
type Options struct {
	// TLS makes every client use TLS. With a pool of client CAs in it, only those that have a certificate.
	TLS *tls.Config
	// Clients is how many may use exports at once; the others wait to be accepted. Each may have requests
	// of 64 MiB here. As many of one address, and four times as many in total, may be in their handshake: beyond
	// that the oldest handshake ends.
	Clients int
	Log     *slog.Logger
}

const (
	defaultClients   = 64
	handshakePatient = 30 * time.Second // a client that says nothing for so long is sent away
	stopGrace        = 5 * time.Second  // to send answers to a client that does not read them
)

// A Server serves a fixed list of exports.
type Server struct {
	opts    Options
	exports []*export
}

// An export and who uses it.
type export struct {
	Export
	writer blockdev.Writer // nil if it cannot be written to
	quick  blockdev.Quick  // nil unless it is
	mapped blockdev.Mapped

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

// New returns a server of exports, which are the caller's: they must stay open until Serve has returned.
func New(exports []Export, opts Options) (*Server, error) {
	if opts.Clients <= 0 {
		opts.Clients = defaultClients
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: opts}
	for _, e := range exports {
		if len(e.Name) > maxName || len(e.Description) > maxName {
			return nil, fmt.Errorf("export name or description of more than %d bytes", maxName)
		}
		if s.find(e.Name) != nil {
			return nil, fmt.Errorf("two exports are named %q", e.Name)
		}
		x := &export{Export: e, conns: map[*conn]struct{}{}}
		x.writer, _ = e.Device.(blockdev.Writer)
		x.quick, _ = e.Device.(blockdev.Quick)
		x.mapped, _ = e.Device.(blockdev.Mapped)
		s.exports = append(s.exports, x)
	}
	return s, nil
}

func (s *Server) find(name string) *export {
	for _, e := range s.exports {
		if e.Name == name {
			return e
		}
	}
	return nil
}

// Serve accepts clients on l until ctx ends or l fails. It closes l, and returns when every request that was
// read has been answered and the last connection is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	var started sync.WaitGroup
	defer started.Wait()
	defer stop()
	started.Go(func() { <-ctx.Done(); l.Close() })
	room := semaphore.NewWeighted(int64(s.opts.Clients))
	newcomers := &unfinished{most: 4 * s.opts.Clients, perAddress: s.opts.Clients}
	for {
		c, err := l.Accept()
		if err != nil && ctx.Err() != nil {
			return nil // asked to stop
		}
		if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			s.opts.Log.Warn("client not accepted", "err", err)
			select {
			case <-time.After(acceptAgain):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		// One client waits here while there is no room, the next ones in the kernel.
		if room.Acquire(ctx, 1) != nil {
			c.Close()
			return nil // asked to stop
		}
		room.Release(1)
		h := &handshake{s: s, conn: c, log: s.opts.Log.With("client", clientName(c)), door: door{room, newcomers, newcomers.enter(c)}}
		started.Go(func() {
			defer c.Close()
			defer h.close()
			if x := s.welcome(ctx, c, h); x != nil {
				s.serve(ctx, h, x)
			}
		})
	}
}

const acceptAgain = 100 * time.Millisecond // by then a descriptor may be free

// welcome has a client choose an export; it returns nil if there will be no session.
func (s *Server) welcome(ctx context.Context, nc net.Conn, h *handshake) *export {
	leave := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) }) // wakes whoever reads
	err := nc.SetDeadline(time.Now().Add(handshakePatient))
	var x *export
	if err == nil {
		x, err = h.run(ctx)
	}
	if !h.admitted && !h.door.newcomers.leave(h.door.n) {
		err = errCrowded
	}
	if err != nil && ctx.Err() == nil {
		h.log.Info("no session", "reason", err)
	}
	if !leave() || err != nil || nc.SetDeadline(time.Time{}) != nil {
		return nil
	}
	return x
}

// serve answers the requests of one client until it leaves or ctx ends.
func (s *Server) serve(ctx context.Context, h *handshake, x *export) {
	c := newConn(x, h, h.log)
	if !x.enter(ctx, c) {
		return
	}
	defer x.leave(c)
	h.log.Info("client", "export", x.Name)
	began := time.Now()
	err := c.run(ctx)
	h.log.Info("client has left", "export", x.Name, "after", time.Since(began).Round(time.Millisecond), "reason", err)
}

func clientName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return nc.LocalAddr().Network()
}

// enter makes a connection one of the export's. A client that comes back after its connection broke may send
// again what it had sent there: nothing that is left of a connection whose client has gone may be carried
// out after that, so they are waited for.
func (x *export) enter(ctx context.Context, c *conn) bool {
	x.mu.Lock()
	var gone []*conn
	for other := range x.conns {
		if other.hungUp() {
			gone = append(gone, other)
		}
	}
	x.conns[c] = struct{}{}
	x.mu.Unlock()
	for _, other := range gone {
		select {
		case <-other.drained:
		case <-ctx.Done():
			x.leave(c)
			return false
		}
	}
	return true
}

func (x *export) leave(c *conn) {
	x.mu.Lock()
	delete(x.conns, c)
	x.mu.Unlock()
}
