package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument is what a manifest may have in bytes, what it embeds included; containerd's own limit
// is the same.
const maxDocument = 4 << 20

// manifestTypes are what a manifest of an image may be.
var manifestTypes = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
	images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2ManifestList,
}, ", ")

// Manifest reads a manifest or an index that a tag or a digest names, by one request, and returns it
// with its descriptor.
func (r *Registry) Manifest(ctx context.Context, repo Repository, reference string) (ocispec.Descriptor, []byte, error) {
	needs := docker.HostCapabilityPull
	want, err := digest.Parse(reference)
	if err != nil {
		want, needs = "", docker.HostCapabilityPull|docker.HostCapabilityResolve
	}
	doc, mediaType, err := r.document(ctx, repo, needs, "manifests/"+reference, manifestTypes)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s of %s: %w", reference, repo, err)
	}
	if want == "" {
		want = digest.FromBytes(doc)
	}
	if !want.Algorithm().Available() || want.Algorithm().FromBytes(doc) != want {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s of %s has other bytes", reference, repo)
	}
	var says struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(doc, &says); err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s of %s: %w", reference, repo, err)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	if says.MediaType != "" && says.MediaType != mediaType {
		err := fmt.Errorf("manifest %s of %s is a %q and says that it is a %q", reference, repo, mediaType, says.MediaType)
		return ocispec.Descriptor{}, nil, err
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(doc))}, doc, nil
}

// ForThisPlatform returns the manifest of an index that fits this machine best.
func ForThisPlatform(index []byte) (ocispec.Descriptor, error) {
	var doc ocispec.Index
	if err := json.Unmarshal(index, &doc); err != nil {
		return ocispec.Descriptor{}, err
	}
	match := platforms.Default()
	var best *ocispec.Descriptor
	for i := range doc.Manifests {
		m := &doc.Manifests[i]
		if m.Platform != nil && match.Match(*m.Platform) && (best == nil || match.Less(*m.Platform, *best.Platform)) {
			best = m
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("no manifest for %s", platforms.DefaultString())
	}
	return *best, nil
}

// Warm opens connections to the host that serves a registry, so that requests that are soon to be
// made need not wait for it. It returns when they are open, or none could be.
func (r *Registry) Warm(ctx context.Context, registry string, connections int) {
	hosts, err := r.registryHosts(ctx, registry)
	if err != nil || len(hosts) == 0 {
		return // the requests themselves will say why
	}
	host := hosts[0]
	for _, other := range hosts[1:] { // the first that is not left out
		if r.healthOf(host.Scheme, host.Host).out() == nil {
			break
		}
		host = other
	}
	host.Authorizer = nil // any answer will do
	var all sync.WaitGroup
	for range connections {
		all.Go(func() {
			if resp, err := r.get(ctx, host, Repository{Host: registry}, host.Scheme+"://"+host.Host+host.Path+"/", "", ""); err == nil {
				drain(resp)
			}
		})
	}
	all.Wait()
}

// document reads a small document of a repository from the first host that has it.
func (r *Registry) document(
	ctx context.Context, repo Repository, needs docker.HostCapabilities, what, accept string,
) (doc []byte, mediaType string, err error) {
	hosts, err := r.registryHosts(ctx, repo.Host)
	if err != nil {
		return nil, "", err
	}
	asked, err := r.ask(ctx, turn{hosts: hosts, needs: needs, repo: repo}, func(ctx context.Context, host docker.RegistryHost) error {
		var e error
		if doc, mediaType, e = r.documentFrom(ctx, host, repo, what, accept); e == nil {
			r.healthOf(host.Scheme, host.Host).served()
		}
		return e
	})
	if asked == 0 {
		err = fmt.Errorf("no host is configured to pull from %s", repo.Host)
	}
	if err != nil {
		return nil, "", err
	}
	return doc, mediaType, nil
}

func (r *Registry) documentFrom(
	ctx context.Context, host docker.RegistryHost, repo Repository, what, accept string,
) (doc []byte, mediaType string, err error) {
	u := host.Scheme + "://" + host.Host + host.Path + "/" + repo.Path + "/" + what
	if isMirror(host.Host, repo.Host) {
		sep := "?"
		if strings.Contains(what, "?") {
			sep = "&"
		}
		u += sep + url.Values{"ns": {repo.Host}}.Encode()
	}
	resp, err := r.requestOrigin(BeforeBulk(ctx), host, repo, u, "", accept)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", statusError(resp)
	}
	doc, err = io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err == nil && len(doc) > maxDocument {
		err = errors.New("document is too large")
	}
	if want, ok := strings.CutPrefix(what, "manifests/"); ok && err == nil {
		err = checkManifest(host.Host, doc, want)
	}
	return doc, resp.Header.Get("Content-Type"), err
}

// checkManifest insists on the bytes that a digest names. A tag names none.
func checkManifest(host string, doc []byte, reference string) error {
	want, err := digest.Parse(reference)
	if err == nil && want.Algorithm().FromBytes(doc) != want {
		return fmt.Errorf("%s serves other bytes", host)
	}
	return nil
}
