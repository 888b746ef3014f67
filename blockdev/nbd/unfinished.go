package nbd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"
)

// unfinished are the clients in their handshake, oldest first. A client that says nothing costs its sender as good as nothing,
// so it must not keep others out: beyond a bound the oldest is sent away for a new one, of the same address first. Clients that
// mean it are through in a few round trips, and are seldom the oldest.
type unfinished struct {
	most, perAddress int

	mu      sync.Mutex // guards the fields below
	clients []*newcomer
}

// A newcomer is a client in its handshake.
type newcomer struct {
	conn net.Conn
	from netip.Prefix // the zero value for a Unix socket's clients, which are all root's
}

var errCrowded = errors.New("too many clients have not finished their handshake, and this one began first")

// A door is what a newcomer has to pass.
type door struct {
	room      *semaphore.Weighted // for clients that use an export
	newcomers *unfinished
	n         *newcomer
}

// admit waits for room, unless the client was sent away.
func (d door) admit(ctx context.Context) error {
	if !d.newcomers.leave(d.n) {
		return errCrowded
	}
	return d.room.Acquire(ctx, 1)
}

// enter adds a client, and sends another away if there are too many.
func (u *unfinished) enter(conn net.Conn) *newcomer {
	n := &newcomer{conn, sourceOf(conn)}
	u.mu.Lock()
	defer u.mu.Unlock()
	oldest, same := 0, 0
	for i, other := range slices.Backward(u.clients) {
		if n.from.IsValid() && other.from == n.from {
			oldest = i
			same++
		}
	}
	if same < u.perAddress {
		oldest = 0
	}
	if same >= u.perAddress || len(u.clients) >= u.most {
		_ = u.clients[oldest].conn.Close() // wakes its goroutine, which finds that it is not in the list
		u.clients = slices.Delete(u.clients, oldest, oldest+1)
	}
	u.clients = append(u.clients, n)
	return n
}

// leave takes a client away whose handshake is over, and reports whether it was not sent away before.
func (u *unfinished) leave(n *newcomer) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.Index(u.clients, n)
	if i < 0 {
		return false
	}
	u.clients = slices.Delete(u.clients, i, i+1)
	return true
}

// sourceOf returns what counts as one address: an IPv4 address, or the network of 64 bits that one IPv6 host may choose its
// addresses from.
func sourceOf(conn net.Conn) netip.Prefix {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap()
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil { // no address at all
		return netip.Prefix{}
	}
	return p
}
