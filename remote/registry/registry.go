package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/golang/groupcache/lru"
)

// Options say how registries are reached. The zero value works.
type Options struct {
	// ConfigPath lists directories with a folder a host that holds hosts.toml, as in
	// containerd's registry configuration.
	ConfigPath []string
	// DockerConfig is Docker's config.json or the directory it is in; "" for none.
	DockerConfig string
	Logins       *Logins
	Retry        Retry
	Stall        time.Duration // how long a server may send nothing; default 30 s
	// PrivatePlaces lets URLs of layers, and redirects and token servers of public registries, lead to addresses that are not public.
	PrivatePlaces bool
	Log           *slog.Logger
}

// A Registry reaches registries. It is safe for concurrent use.
type Registry struct {
	opts      Options
	elsewhere *http.Client          // of layers' own URLs
	public    func(netip.Addr) bool // whether an address is one of the internet
	era       atomic.Int64          // of outages: those of an earlier one count no longer
	listed    listed

	mu        sync.Mutex // guards the fields below
	hosts     *lru.Cache // cachedHosts by registry host
	redirects *lru.Cache // redirect by blob URL
	meters    *lru.Cache // *meter by registry host
	paces     *lru.Cache // *pace by the host that is asked
	healths   *lru.Cache // *health by scheme and host
	lacking   *lru.Cache // lack by blob URL
}

// What is remembered of registries: more than a node uses. Manifests name registries and layers as they like.
const (
	knownHosts     = 1024
	knownRedirects = 4096
	knownLacks     = 4096
)

// New returns a Registry. It opens no connection.
func New(opts Options) *Registry {
	opts.Retry = opts.Retry.withDefaults()
	if opts.Stall == 0 {
		opts.Stall = 30 * time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	elsewhere := http.DefaultTransport.(*http.Transport).Clone()
	elsewhere.ResponseHeaderTimeout = opts.Stall
	r := &Registry{
		opts: opts, public: public,
		hosts: lru.New(knownHosts), redirects: lru.New(knownRedirects), meters: lru.New(knownHosts),
		paces: lru.New(knownHosts), healths: lru.New(knownHosts), lacking: lru.New(knownLacks),
	}
	r.elsewhere = &http.Client{Transport: r.route(elsewhere)}
	return r
}

// A Repository is a place for images: a registry's host as references name it, and a path.
type Repository struct {
	Host, Path string
}

// ParseRepository returns the repository of a reference like docker.io/library/redis:7.
func ParseRepository(ref string) (Repository, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return Repository{}, fmt.Errorf("reference %q: %w (a full reference names its registry: docker.io/library/redis:7)", ref, err)
	}
	host := spec.Hostname()
	return Repository{Host: host, Path: strings.TrimPrefix(spec.Locator, host+"/")}, nil
}

func (r Repository) String() string { return r.Host + "/" + r.Path }

// Hostname returns the host without its port, which is how containerd's labels name it.
func (r Repository) Hostname() string {
	u := url.URL{Host: r.Host}
	return u.Hostname()
}

// SetLogin remembers what an operator told us about a host, for this life and the next ones.
func (r *Registry) SetLogin(host string, login Login) error {
	changed, err := r.opts.Logins.Set(host, login)
	if changed {
		r.mu.Lock()
		r.hosts.Remove(host)
		r.mu.Unlock()
	}
	return err
}

// Resolver returns containerd's resolver over the same hosts and credentials.
func (r *Registry) Resolver(ctx context.Context) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(host string) ([]docker.RegistryHost, error) {
		return r.registryHosts(ctx, host)
	}})
}

// Configured returns the registries on a host, with their ports, that a configuration directory
// or a login names.
func (r *Registry) Configured(hostname string) []string {
	var all []string
	add := func(name string) {
		if trimmed, ok := strings.CutSuffix(name, "_"); ok { // host_port_ stands for host:port
			if i := strings.LastIndex(trimmed, "_"); i > 0 {
				name = trimmed[:i] + ":" + trimmed[i+1:]
			}
		}
		u := url.URL{Host: name}
		if u.Hostname() == hostname && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	for _, dir := range r.opts.ConfigPath {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // need not exist
		}
		for _, e := range entries {
			add(e.Name())
		}
	}
	for _, host := range r.opts.Logins.Hosts() {
		add(host)
	}
	slices.Sort(all)
	return all
}

// credentials for a host that serves a registry: what an operator said of the registry goes to
// the registry's own host, never to a mirror.
func (r *Registry) credentials(ctx context.Context, registry, asked string) (user, secret string, err error) {
	if asked == registry || registry == "docker.io" && asked == "registry-1.docker.io" {
		if l := r.opts.Logins.Get(registry); l.User != "" || l.Secret != "" {
			return l.User, l.Secret, nil
		}
	}
	return dockerCredentials(ctx, r.opts.DockerConfig, asked)
}
