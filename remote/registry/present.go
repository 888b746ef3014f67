package registry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Present reports by its error whether the hosts that a registry's blobs come from are registries now: each answers the base of its
// API as OCI's distribution specification wants it, or asks for credentials. So it tells a registry that lacks something from a load
// balancer with nothing behind it, which answers 404, too.
func (r *Registry) Present(ctx context.Context, registry string) error {
	hosts, err := r.registryHosts(ctx, registry)
	if err != nil {
		return err
	}
	asked := 0
	for _, host := range hosts {
		if !host.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		asked++
		host.Authorizer = nil // a demand for credentials is an answer
		u := host.Scheme + "://" + host.Host + host.Path + "/"
		resp, err := r.requestOrigin(BeforeBulk(ctx), host, Repository{Host: registry}, u, "", "")
		if err != nil {
			return fmt.Errorf("is %s a registry: %w", host.Host, err)
		}
		drain(resp)
		switch resp.StatusCode {
		case http.StatusOK, http.StatusUnauthorized, http.StatusForbidden:
		default:
			return fmt.Errorf("is %s a registry: %w", host.Host, statusError(resp))
		}
	}
	if asked == 0 {
		return fmt.Errorf("no host is configured to pull from %s", registry)
	}
	return nil
}
