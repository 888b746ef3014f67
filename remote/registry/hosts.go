package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
)

// cachedHosts keeps connections and tokens of one registry's hosts together, until a file that they are made of changes.
type cachedHosts struct {
	hosts []docker.RegistryHost
	until time.Time
	of    stamps
}

const hostsTTL = 10 * time.Minute // Docker's credentials and the system's certificates may change, too

// registryHosts returns the hosts that serve a registry, mirrors first.
func (r *Registry) registryHosts(ctx context.Context, host string) ([]docker.RegistryHost, error) {
	r.mu.Lock()
	known, ok := r.hosts.Get(host)
	r.mu.Unlock()
	c, _ := known.(cachedHosts)
	changed := ok && !c.of.hold()
	if ok && !changed && time.Now().Before(c.until) {
		return c.hosts, nil
	}
	of := r.stampsOf(host) // before the files are read
	hosts, err := r.readHosts(ctx, host)
	switch {
	case err != nil && !changed:
		return nil, fmt.Errorf("hosts of registry %s: %w", host, err)
	case err != nil: // a certificate may be there before its key
		r.opts.Log.Warn("changed configuration of a registry is of no use, the old one stays", "registry", host, "err", err)
		hosts = c.hosts
	case changed:
		r.opts.Log.Info("configuration of a registry has changed", "registry", host)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts.Add(host, cachedHosts{hosts: hosts, until: time.Now().Add(hostsTTL), of: of})
	for _, h := range hosts {
		if changed { // what failed may be mended
			r.healths.Remove(healthKey(h.Scheme, h.Host))
		}
	}
	return hosts, nil
}

// readHosts makes a registry's hosts of what is configured.
func (r *Registry) readHosts(ctx context.Context, host string) ([]docker.RegistryHost, error) {
	login := r.opts.Logins.Get(host)
	creds := func(asked string) (string, string, error) {
		return r.credentials(context.WithoutCancel(ctx), host, asked)
	}
	options := config.HostOptions{
		HostDir: r.hostDir,
		UpdateClient: func(c *http.Client) error {
			if t, ok := c.Transport.(*http.Transport); ok {
				t.ResponseHeaderTimeout = r.opts.Stall
				t.MaxIdleConns, t.MaxIdleConnsPerHost = maxAsked, maxAskedOfOne // each other request would pay a handshake
				c.Transport = r.route(t)
			}
			return nil
		},
	}
	if login.PlainHTTP {
		options.DefaultScheme = "http"
	}
	hosts, err := config.ConfigureHosts(context.WithoutCancel(ctx), options)(host)
	for i := range hosts { // containerd's resolver cleans the paths of its requests
		hosts[i].Path = strings.TrimSuffix(path.Join("/", hosts[i].Path), "/")
		by := []docker.AuthorizerOpt{docker.WithAuthClient(hosts[i].Client), docker.WithAuthCreds(creds)}
		if len(hosts[i].Header) > 0 {
			by = append(by, docker.WithAuthHeader(hosts[i].Header))
		}
		hosts[i].Authorizer = newAuthorizer(func() docker.Authorizer { return docker.NewDockerAuthorizer(by...) })
	}
	return hosts, err
}

// hostDir finds a registry's directory in the first ConfigPath that has one.
func (r *Registry) hostDir(host string) (string, error) {
	for _, root := range r.opts.ConfigPath {
		dir, err := config.HostDirFromRoot(root)(host)
		if err == nil || !errors.Is(err, errdefs.ErrNotFound) {
			return dir, err
		}
	}
	return "", nil
}

// forget drops what is cached of a registry, so that credentials and hosts are read again.
func (r *Registry) forget(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts.Remove(host)
}
