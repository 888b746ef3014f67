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

// ask asks the hosts that may be asked. A host that fails is left out while another one follows, and so is a mirror that lacks the
// blob: what they answered lately counts as their answer. asked is how many there are, and err the error that says most.
func (r *Registry) ask(ctx context.Context, t turn, ask func(context.Context, docker.RegistryHost) error) (asked int, err error) {
	hosts := make([]docker.RegistryHost, 0, len(t.hosts))
	for i := range t.hosts {
		if host := t.hosts[(i+t.first)%len(t.hosts)]; host.Capabilities.Has(t.needs) {
			hosts = append(hosts, host)
		}
	}
	for i, host := range hosts {
		e := r.askOne(ctx, t, host, i < len(hosts)-1, ask)
		if e == nil {
			return len(hosts), nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return len(hosts), cause
		}
		err = keep(err, e)
	}
	return len(hosts), err
}

func (r *Registry) askOne(
	ctx context.Context, t turn, host docker.RegistryHost, more bool, ask func(context.Context, docker.RegistryHost) error,
) error {
	h := r.healthOf(host.Scheme, host.Host)
	mirrored := ""
	if t.blob != "" && isMirror(host.Host, t.repo.Host) {
		mirrored = blobURL(host, t.repo, t.blob)
	}
	if more {
		if err := r.lacks(mirrored); err != nil {
			return err
		}
		if err := h.enter(); err != nil {
			return fmt.Errorf("not asked since it failed: %w", err)
		}
		defer h.leave()
		ctx = context.WithValue(ctx, hurriedKey{}, true)
	}
	began := time.Now()
	err := ask(ctx, host)
	if err != nil {
		r.judge(ctx, host.Host, h, began, err)
		r.opts.Log.Debug("host did not serve", "host", host.Host, "repository", t.repo, "digest", t.blob, "err", err)
		if mirrored != "" {
			r.noteLack(mirrored, err)
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
