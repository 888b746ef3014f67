package registry

import (
	"context"
	"fmt"
	"net"
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
}

// ask asks the hosts that may be asked. A host that fails is left out while one follows that does not, and is asked after all if
// that one fails, too. A mirror that lacks the blob is left out: what it answered lately counts as its answer. asked is how many
// hosts there are, and err the error that says most.
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
	asked = len(hosts)
	var failed error // of those that were asked
	for len(hosts) > 0 {
		var left []docker.RegistryHost
		for i, host := range hosts {
			leave, out := r.claim(t, host, hosts[i+1:])
			if out != nil {
				err = keep(err, out.why)
				if !out.lacks {
					left = append(left, host)
				}
				continue
			}
			ctx := ctx
			if i == len(hosts)-1 && len(left) == 0 {
				ctx = context.WithValue(ctx, hurriedKey{}, nil)
			}
			e := r.askOne(ctx, t, host, ask)
			leave()
			if e == nil {
				return asked, nil
			}
			if cause := context.Cause(ctx); cause != nil {
				return asked, cause
			}
			failed, err = keep(failed, e), keep(err, e)
		}
		if !faulty(failed) {
			break
		}
		hosts = left
	}
	return asked, err
}

// leftOut is why a host is not asked.
type leftOut struct {
	why   error
	lacks bool // the blob
}

// claim returns why a host is not asked before those that follow, or else a function that must be called when it was asked.
func (r *Registry) claim(t turn, host docker.RegistryHost, following []docker.RegistryHost) (leave func(), out *leftOut) {
	if len(following) > 0 {
		if err := r.lacks(t.mirrored(host)); err != nil {
			return nil, &leftOut{err, true}
		}
	}
	leave, err := r.healthOf(host.Scheme, host.Host).enter()
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
	if err != nil {
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
