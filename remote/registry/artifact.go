package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
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
func ArtifactTag(image digest.Digest, kind string) string {
	return image.Algorithm().String() + "-" + image.Encoded() + "." + kind
}

// Artifact returns the content of the newest artifact of a kind that refers to an image. It asks for it under its own tag
// and, at the same time, by the Referrers API. An error that wraps ErrNotFound says that there is none.
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

// referrer finds an artifact by the Referrers API.
func (c *contentReader) referrer(ctx context.Context, image digest.Digest, kind ArtifactKind) ([]byte, error) {
	what := "referrers/" + image.String() + "?" + url.Values{"artifactType": {kind.Type}}.Encode()
	p, mediaType, err := c.r.document(ctx, c.repo, docker.HostCapabilityPull, what, ocispec.MediaTypeImageIndex)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(mediaType, "text/html") { // as some answer to what they do not know
		return nil, fmt.Errorf("no Referrers API, but a page for people: %w", ErrNotFound)
	}
	var index ocispec.Index
	if err := json.Unmarshal(p, &index); err != nil {
		return nil, fmt.Errorf("list of referrers: %w", err)
	}
	newest, when := "", time.Time{}
	for _, d := range index.Manifests {
		if d.ArtifactType != kind.Type {
			continue // a registry need not filter
		}
		at, _ := time.Parse(time.RFC3339, d.Annotations[ocispec.AnnotationCreated]) // the zero time if it does not say
		if newest == "" || at.After(when) {
			newest, when = d.Digest.String(), at
		}
	}
	if newest == "" {
		return nil, fmt.Errorf("no referrer: %w", ErrNotFound)
	}
	return c.at(ctx, newest, image, kind)
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
	if m.ArtifactType != kind.Type || m.Subject == nil || m.Subject.Digest != image || len(m.Layers) != 1 {
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

func checked(content []byte, d ocispec.Descriptor) ([]byte, error) {
	if int64(len(content)) != d.Size || d.Digest.Algorithm().FromBytes(content) != d.Digest {
		return nil, fmt.Errorf("artifact %s has other bytes", d.Digest)
	}
	return content, nil
}
