package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/golang/groupcache/lru"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An ArtifactKind is a kind of artifact that refers to an image.
type ArtifactKind struct {
	Type      string // artifactType of its manifest
	MediaType string // of its only layer, the content
	Tag       string // how the tag ends by which it is found at once
	Limit     int64  // bytes of content that are accepted
}

// ArtifactTag is the tag under which an artifact that refers to an image is found without asking
// for a list first: one round trip instead of three.
func ArtifactTag(image digest.Digest, kind string) string { return listTag(image) + "." + kind }

// Artifact returns the content of the newest artifact of a kind that refers to an image. It asks for it under its own tag
// and, at the same time, for the list of what refers to the image. An error that wraps ErrNotFound says that there is none.
//
// take, if it is not nil, is called before a content is read, with the bytes of memory that reading it takes. It may wait, and
// its error ends the call. It is called once more if what came first was wrong; nothing of that is in memory then.
func (r *Registry) Artifact(
	ctx context.Context, repo Repository, image digest.Digest, kind ArtifactKind, take func(context.Context, int64) error,
) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	get := contentReader{r: r, repo: repo, take: take, turn: make(chan struct{}, 1)}
	type answer struct {
		p   []byte
		err error
	}
	answers := make(chan answer, 2)
	var both sync.WaitGroup
	defer both.Wait()
	defer cancel()
	both.Go(func() {
		p, err := get.at(ctx, ArtifactTag(image, kind.Tag), image, kind)
		answers <- answer{p, err}
	})
	both.Go(func() {
		p, err := get.referrer(ctx, image, kind)
		answers <- answer{p, err}
	})
	first := <-answers
	if first.err == nil {
		return first.p, nil
	}
	second := <-answers
	if second.err == nil {
		return second.p, nil
	}
	return nil, fmt.Errorf("artifact %s of %s@%s: %w", kind.Type, repo, image, whyNot(first.err, second.err))
}

// whyNot returns what is to be said of two ways that led to no artifact. That one of them is not there
// is an answer, whatever status a registry without the other gives; bytes that are wrong are a fault.
func whyNot(a, b error) error {
	var status *StatusError
	for _, err := range []error{a, b} {
		if !errors.Is(err, ErrNotFound) && !errors.As(err, &status) {
			return err
		}
	}
	if errors.Is(a, ErrNotFound) {
		return a
	}
	return b
}

// A contentReader reads the contents of artifacts, one at a time: both ways to an artifact lead to the same bytes.
type contentReader struct {
	r    *Registry
	repo Repository
	take func(context.Context, int64) error // of Artifact
	turn chan struct{}                      // holds a token while a content is read, and for ever once it was right
}

// referrer finds an artifact by the list of what refers to an image. One that is listed and was deleted makes way for the next.
func (c *contentReader) referrer(ctx context.Context, image digest.Digest, kind ArtifactKind) ([]byte, error) {
	all, err := c.r.referrers(ctx, c.repo, image, kind, referrersMost)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("no referrer: %w", ErrNotFound)
	for _, d := range all {
		var p []byte
		if p, err = c.at(ctx, d.Digest.String(), image, kind); !errors.Is(err, ErrNotFound) {
			return p, err
		}
	}
	return nil, err
}

// referrers returns so many artifacts of a kind that are said to refer to an image, the newest first.
func (r *Registry) referrers(
	ctx context.Context, repo Repository, image digest.Digest, kind ArtifactKind, most int,
) (all []ocispec.Descriptor, err error) {
	p, err := r.referrersList(ctx, repo, image, kind)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(p, &index); err != nil {
		return nil, fmt.Errorf("list of referrers: %w", err)
	}
	for _, d := range index.Manifests {
		if d.ArtifactType == kind.Type && len(all) < most { // a registry need not filter
			all = append(all, d)
		}
	}
	created := func(d ocispec.Descriptor) time.Time {
		at, _ := time.Parse(time.RFC3339, d.Annotations[ocispec.AnnotationCreated]) // the zero time if it does not say
		return at
	}
	slices.SortStableFunc(all, func(a, b ocispec.Descriptor) int { return created(b).Compare(created(a)) })
	return all, nil
}

// referrersMost is how many artifacts of a kind are looked at for a content.
const referrersMost = 16

// referrersList returns the list of what refers to an image: by the Referrers API, or where a repository has none, from under the tag that
// clients keep the list under then. So they do when they copy an image with all that belongs to it.
func (r *Registry) referrersList(ctx context.Context, repo Repository, image digest.Digest, kind ArtifactKind) ([]byte, error) {
	if !r.listed.lately(repo) {
		what := "referrers/" + image.String() + "?" + url.Values{"artifactType": {kind.Type}}.Encode()
		p, mediaType, err := r.document(ctx, repo, docker.HostCapabilityPull, what, ocispec.MediaTypeImageIndex)
		if err == nil && strings.HasPrefix(mediaType, "text/html") { // as some answer to what they do not know
			err = fmt.Errorf("no Referrers API, but a page for people: %w", ErrNotFound)
		}
		if !unknownCall(err) {
			return p, err
		}
		r.listed.note(repo)
	}
	p, _, err := r.document(ctx, repo, docker.HostCapabilityPull, "manifests/"+listTag(image), ocispec.MediaTypeImageIndex)
	return p, err
}

// listTag is the tag under which the list of what refers to an image is, as the distribution specification has it.
func listTag(image digest.Digest) string { return image.Algorithm().String() + "-" + image.Encoded() }

// unknownCall reports whether an answer may be that of a registry which does not know a call.
func unknownCall(err error) bool {
	var status *StatusError
	return errors.Is(err, ErrNotFound) || errors.As(err, &status) && status.Status != http.StatusUnauthorized &&
		(status.Status == http.StatusNotImplemented || !Retryable(err))
}

// listedHolds is how long a repository is known to have no Referrers API, and listedMost how many are.
const (
	listedHolds = time.Hour
	listedMost  = 1024
)

// listed are the repositories without a Referrers API: where nothing is published either, asking them takes a round trip less.
type listed struct {
	mu    sync.Mutex // guards since
	since lru.Cache  // when it was found out, by Repository
}

func (l *listed) note(repo Repository) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since.MaxEntries = listedMost
	l.since.Add(repo, time.Now())
}

func (l *listed) lately(repo Repository) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, ok := l.since.Get(repo)
	return ok && time.Since(since.(time.Time)) < listedHolds
}

// read returns a content.
func (c *contentReader) read(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err // the other way came first
	}
	if c.take != nil {
		if err := c.take(ctx, d.Size*9/4); err != nil { // a buffer grows by a quarter, and its bytes move to the next
			return nil, err
		}
	}
	content, err := c.r.readAll(ctx, c.repo, d)
	if err != nil {
		return nil, err
	}
	return checked(content, d)
}

// readAll returns a small blob. It takes memory for what has come, not for what the manifest announces.
func (r *Registry) readAll(ctx context.Context, repo Repository, d ocispec.Descriptor) ([]byte, error) {
	b, err := r.Blob(repo, d.Digest, d.Size).Open(ctx, 0, d.Size, 0)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b) // it ends after d.Size bytes
}

// at returns the content of the artifact that a tag or digest names.
func (c *contentReader) at(ctx context.Context, ref string, image digest.Digest, kind ArtifactKind) ([]byte, error) {
	p, _, err := c.r.document(ctx, c.repo, docker.HostCapabilityPull, "manifests/"+ref, ocispec.MediaTypeImageManifest)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(p, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", ref, err)
	}
	if !isArtifact(&m, image, kind) || len(m.Layers) != 1 {
		return nil, fmt.Errorf("manifest %s is no %s of %s: %w", ref, kind.Type, image, ErrNotFound)
	}
	d := m.Layers[0]
	if d.Size <= 0 || d.Size > kind.Limit || d.Digest.Validate() != nil {
		return nil, fmt.Errorf("artifact %s of %d bytes", d.Digest, d.Size)
	}
	if d.Data != nil {
		return checked(d.Data, d)
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	content, err := c.read(ctx, d)
	if err != nil {
		<-c.turn
	}
	return content, err
}

// isArtifact reports whether a manifest is one of a kind that refers to an image.
func isArtifact(m *ocispec.Manifest, image digest.Digest, kind ArtifactKind) bool {
	return m.ArtifactType == kind.Type && m.Subject != nil && m.Subject.Digest == image
}

func checked(content []byte, d ocispec.Descriptor) ([]byte, error) {
	if int64(len(content)) != d.Size || d.Digest.Algorithm().FromBytes(content) != d.Digest {
		return nil, fmt.Errorf("artifact %s has other bytes", d.Digest)
	}
	return content, nil
}
