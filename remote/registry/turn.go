package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// A turn is hosts that are asked one after the other until one serves.
type turn struct {
	hosts []docker.RegistryHost
	first int // the one that begins, modulo their number
	needs docker.HostCapabilities
	repo  Repository
	blob  string // digest of the blob that is asked for, if it is one
	// ranged says that a range is asked for: hosts that lately served none are left out where another one follows.
	ranged bool
}

// ask asks the hosts that may be asked. A host that fails is left out while one follows that does not, and is asked after all if
// that one fails, too. So is one that has said that it is asked too much: only if the others fail is its time waited for. A mirror
// that lacks the blob is left out: what it answered lately counts as its answer. asked is how many hosts there are, and err the
// error that says most.
func (r *Registry) ask(ctx context.Context, t turn, ask func(context.Context, docker.RegistryHost) error) (asked int, err error) {
	hosts := make([]docker.RegistryHost, 0, len(t.hosts))
	for i := range t.hosts {
		if host := t.hosts[(i+t.first)%len(t.hosts)]; host.Capabilities.Has(t.needs) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) > 1 {
		ctx = context.WithValue(ctx, hurriedKey{}, true)
	}
	if tell, ok := ctx.Value(tellKey{}).(func()); ok && len(hosts) > 0 {
		tell()
	}
	a := asking{r: r, turn: t, ask: ask}
	for round, left := 0, hosts; len(left) > 0; round++ {
		served := a.round(ctx, left, round == 0 && len(hosts) > 1)
		if served {
			return len(hosts), nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return len(hosts), cause
		}
		left = a.later()
	}
	return len(hosts), a.err
}

type tellKey struct{}

// TellAsked returns a context with which tell is called whenever a registry is about to be asked.
func TellAsked(ctx context.Context, tell func()) context.Context {
	return context.WithValue(ctx, tellKey{}, tell)
}

// asking is what has come of a turn.
type asking struct {
	r    *Registry
	turn turn
	ask  func(context.Context, docker.RegistryHost) error

	failed, err error // of the hosts that were asked, and of all
	// Of the last round: hosts that were left out since they failed, and those that would have had to be waited for.
	failing []docker.RegistryHost
	busy    []busyHost
}

type busyHost struct {
	host docker.RegistryHost
	*busyError
}

// round asks hosts until one serves. In a brisk one, no host is waited for that has said that it is asked too much.
func (a *asking) round(ctx context.Context, hosts []docker.RegistryHost, brisk bool) (served bool) {
	a.failing, a.busy = nil, nil
	var weak error
	for i, host := range hosts {
		leave, out := a.r.claim(a.turn, host, hosts[i+1:])
		if out != nil {
			if out.weak {
				weak = keep(weak, out.why)
			} else {
				a.err = keep(a.err, out.why)
			}
			if !out.lacks {
				a.failing = append(a.failing, host)
			}
			continue
		}
		ctx := ctx
		if last := i == len(hosts)-1 && len(a.failing)+len(a.busy) == 0; last {
			ctx = context.WithValue(ctx, hurriedKey{}, nil)
		} else if brisk {
			ctx = context.WithValue(ctx, briskKey{}, true)
		}
		err := a.r.askOne(ctx, a.turn, host, a.ask)
		leave()
		var busy *busyError
		switch {
		case err == nil:
			return true
		case context.Cause(ctx) != nil:
			return false
		case errors.As(err, &busy):
			a.busy = append(a.busy, busyHost{host, busy})
		default:
			a.failed, a.err = keep(a.failed, err), keep(a.err, err)
		}
	}
	if weak != nil {
		a.err = keep(a.err, weak)
	}
	return false
}

// later returns the hosts that are to be asked after all: those that failed if the others do, too, and then those that must be waited
// for, the soonest first.
func (a *asking) later() (hosts []docker.RegistryHost) {
	if a.failed == nil || faulty(a.failed) {
		hosts = a.failing
	}
	slices.SortStableFunc(a.busy, func(x, y busyHost) int { return cmp.Compare(x.wait, y.wait) })
	for _, b := range a.busy {
		hosts = append(hosts, b.host)
	}
	return hosts
}

// leftOut is why a host is not asked.
type leftOut struct {
	why   error
	lacks bool // the blob
	weak  bool // another host's answer says more
}

// claim returns why a host is not asked before those that follow, or else a function that must be called when it was asked.
func (r *Registry) claim(t turn, host docker.RegistryHost, following []docker.RegistryHost) (leave func(), out *leftOut) {
	if len(following) > 0 {
		if err := r.lacks(t.mirrored(host)); err != nil {
			return nil, &leftOut{why: err, lacks: true}
		}
	}
	h := r.healthOf(host.Scheme, host.Host)
	if err := h.noRanges(); err != nil && t.ranged && len(following) > 0 {
		return nil, &leftOut{why: err, weak: true}
	}
	leave, err := h.enter()
	if err == nil {
		return leave, nil
	}
	for _, next := range following {
		if r.healthOf(next.Scheme, next.Host).out() == nil {
			return nil, &leftOut{why: fmt.Errorf("not asked since it failed: %w", err)}
		}
	}
	return func() {}, nil
}

// mirrored returns the URL of the blob at a mirror, or "" if the host is none.
func (t *turn) mirrored(host docker.RegistryHost) string {
	if t.blob == "" || !isMirror(host.Host, t.repo.Host) {
		return ""
	}
	return blobURL(host, t.repo, t.blob)
}

func (r *Registry) askOne(
	ctx context.Context, t turn, host docker.RegistryHost, ask func(context.Context, docker.RegistryHost) error,
) error {
	began := time.Now()
	err := ask(ctx, host)
	if err != nil && !errors.As(err, new(*busyError)) && !Unasked(err) { // it was asked
		r.judge(ctx, host.Host, r.healthOf(host.Scheme, host.Host), began, err)
		r.opts.Log.Debug("host did not serve", "host", host.Host, "repository", t.repo, "digest", t.blob, "err", err)
		if blob := t.mirrored(host); blob != "" {
			r.noteLack(blob, err)
		}
	}
	return err
}

type hurriedKey struct{}

// hurriedDial bounds the making of a connection where another host follows.
const hurriedDial = 3 * time.Second

// hurried makes connections as next does, within hurriedDial where another host follows.
func hurried(next dial) dial {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ctx.Value(hurriedKey{}) != nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, hurriedDial)
			defer cancel()
		}
		return next(ctx, network, addr)
	}
}
