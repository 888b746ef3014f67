package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry"
	oras "oras.land/oras-go/v2/registry/remote"
)

// Writable returns a repository as oras-go has it, for pushing: over the host of the registry that
// takes pushes, with the credentials that we have for it. Blobs may be mounted from other
// repositories of the same registry.
func (r *Registry) Writable(ctx context.Context, repo Repository) (*oras.Repository, error) {
	hosts, err := r.registryHosts(ctx, repo.Host)
	if err != nil {
		return nil, err
	}
	for _, host := range hosts {
		if !host.Capabilities.Has(docker.HostCapabilityPush) {
			continue
		}
		ref := registry.Reference{Registry: repo.Host, Repository: repo.Path}
		return &oras.Repository{
			Reference: ref, PlainHTTP: host.Scheme == "http", SkipReferrersGC: true,
			Client: &pushClient{host: host, named: ref.Host(), scope: "repository:" + repo.Path + ":pull,push"},
		}, nil
	}
	return nil, fmt.Errorf("no host is configured to push to %s", repo.Host)
}

// pushClient makes oras-go's requests of the host that takes a registry's pushes.
type pushClient struct {
	host  docker.RegistryHost
	named string // the host that requests name
	scope string
}

// Do implements oras-go's Client.
func (c *pushClient) Do(req *http.Request) (*http.Response, error) {
	ctx := docker.WithScope(req.Context(), c.scope)
	if from := req.URL.Query().Get("from"); from != "" {
		ctx = docker.ContextWithAppendPullRepositoryScope(ctx, from)
	}
	req = req.Clone(ctx)
	if req.URL.Host == c.named {
		req.URL.Scheme, req.URL.Host = c.host.Scheme, c.host.Host
		req.URL.Path = c.host.Path + strings.TrimPrefix(req.URL.Path, "/v2")
		req.Host = ""
	}
	client := clientOf(c.host)
	resp, err := client.Do(req)
	if err == nil && resp.StatusCode == http.StatusMethodNotAllowed && asksForManifest(req) {
		resp.Body.Close()
		resp, err = headByGet(&client, req)
	}
	if err != nil {
		return nil, clean(err)
	}
	keepScheme(req, resp)
	return resp, nil
}

func asksForManifest(req *http.Request) bool {
	return req.Method == http.MethodHead && strings.Contains(req.URL.Path, "/manifests/")
}

// headByGet asks for a manifest where a registry does not know HEAD, as containerd does, and returns what HEAD would have.
func headByGet(client *http.Client, req *http.Request) (*http.Response, error) {
	get := req.Clone(req.Context())
	get.Method = http.MethodGet
	resp, err := client.Do(get)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	doc, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err == nil && len(doc) > maxDocument {
		err = errors.New("document is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", req.URL.Host, err)
	}
	resp.Body, resp.ContentLength = http.NoBody, int64(len(doc))
	if resp.Header.Get("Docker-Content-Digest") == "" {
		resp.Header.Set("Docker-Content-Digest", digest.FromBytes(doc).String())
	}
	return resp, nil
}

// keepScheme makes the Location of an answer one of the scheme that was asked by. A client for a registry on localhost tries
// HTTPS and goes on by plain HTTP; oras-go does not see that, and refuses such a Location of the same host as a downgrade.
func keepScheme(req *http.Request, resp *http.Response) {
	if resp.Request == nil || resp.Request.URL.Scheme == req.URL.Scheme {
		return
	}
	to, err := resp.Location()
	if err == nil && to.Host == req.URL.Host && to.Scheme == resp.Request.URL.Scheme {
		to.Scheme = req.URL.Scheme
		resp.Header.Set("Location", to.String())
	}
}
