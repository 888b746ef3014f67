package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/remora-storage/remora/internal/durable"
)

// A Login is what an operator told us about one registry host, beyond configuration files.
type Login struct {
	User      string `json:"user,omitempty"`
	Secret    string `json:"secret,omitempty"`
	PlainHTTP bool   `json:"plain_http,omitempty"`
}

// Logins keeps what operators told us, in a file that only root reads, so that a daemon that
// starts again can go on fetching. Its zero value keeps nothing on disk.
type Logins struct {
	path string

	mu    sync.Mutex // guards the fields below
	hosts map[string]Login
}

// LoginsFile is what a damaged file of logins costs.
var LoginsFile = durable.Kind{
	Name: "logins.json",
	Lost: "names and passwords that snapctl pull was given for registries, and which of these are reached by plain HTTP",
	Do:   "pull an image of each such registry again, with --user or --plain-http; then remove this file, which may hold passwords",
}

// OpenLogins reads the file at path, which need not exist. A damaged one is set aside, and nothing is known of any host then.
func OpenLogins(path string, log *slog.Logger) (*Logins, error) {
	hosts, _, err := durable.LoadJSON[map[string]Login](path, LoginsFile, log, nil)
	if err != nil {
		return nil, err
	}
	if hosts == nil {
		hosts = map[string]Login{}
	}
	return &Logins{path: path, hosts: hosts}, nil
}

// Get returns what is known of a host.
func (l *Logins) Get(host string) Login {
	if l == nil {
		return Login{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[host]
}

// Hosts lists the hosts that something is known of.
func (l *Logins) Hosts() []string {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.hosts))
}

// Set remembers a login; changed reports whether it is another one than before.
func (l *Logins) Set(host string, login Login) (changed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts == nil {
		l.hosts = map[string]Login{}
	}
	if l.hosts[host] == login {
		return false, nil
	}
	l.hosts[host] = login
	if l.path == "" {
		return true, nil
	}
	p, err := json.MarshalIndent(l.hosts, "", "  ")
	if err != nil {
		return true, err
	}
	return true, durable.Replace(l.path, p, 0o600)
}

// dockerCredentials looks a host up in Docker's configuration file, asking its helpers.
func dockerCredentials(ctx context.Context, path, host string) (user, secret string, err error) {
	if path == "" {
		return "", "", nil
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, "config.json")
	}
	store, err := credentials.NewStore(path, credentials.StoreOptions{})
	if err != nil {
		return "", "", fmt.Errorf("read Docker configuration %s: %w", path, err)
	}
	for _, key := range dockerKeys(host) {
		c, err := store.Get(ctx, key)
		if err != nil {
			return "", "", fmt.Errorf("credentials for %s from %s: %w", host, path, err)
		}
		if c.RefreshToken != "" { // an identity token goes without a user name
			return "", c.RefreshToken, nil
		}
		if c.Username != "" || c.Password != "" {
			return c.Username, c.Password, nil
		}
	}
	return "", "", nil
}

// dockerKeys lists the names under which Docker may keep a host's credentials.
func dockerKeys(host string) []string {
	switch host {
	case "docker.io", "registry-1.docker.io", "index.docker.io":
		return []string{"https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"}
	}
	return []string{host, "https://" + host}
}
