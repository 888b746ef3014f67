package control

import (
	"context"

	"github.com/opencontainers/go-digest"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// LoginRequest tells remorad how a registry host is to be reached.
type LoginRequest struct {
	Host      string `json:"host"`
	User      string `json:"user,omitempty"`
	Secret    string `json:"secret,omitempty"`
	PlainHTTP bool   `json:"plain_http,omitempty"`
}

// PrimeRequest names an image that is about to be pulled.
type PrimeRequest struct {
	Namespace string `json:"namespace"`
	Ref       string `json:"ref"`
}

// PrimeReply holds the documents that containerd will ask for, the one that the reference names first. An older remorad does not say how
// registries are reached.
type PrimeReply struct {
	Documents []Document `json:"documents"`
	Registry  *Registry  `json:"registry,omitempty"`
}

// Document is a manifest, an index or a configuration.
type Document struct {
	MediaType string        `json:"media_type"`
	Digest    digest.Digest `json:"digest"`
	Data      []byte        `json:"data"`
}

// ResolveRequest names a manifest in containerd's content store.
type ResolveRequest struct {
	Namespace string        `json:"namespace"`
	Manifest  digest.Digest `json:"manifest"`
	Ref       string        `json:"ref"`
}

// ResolveReply says which layers take the ordinary path, and why.
type ResolveReply struct {
	Ordinary map[digest.Digest]string `json:"ordinary"`
}

// FetchRequest asks for all of an image.
type FetchRequest struct {
	Namespace string        `json:"namespace"`
	Manifest  digest.Digest `json:"manifest"`
	Ref       string        `json:"ref"`
	CacheOnly bool          `json:"cache_only,omitempty"`
}

// FetchProgress is how far a layer is, in packed bytes.
type FetchProgress struct {
	Digest digest.Digest `json:"digest"`
	Bytes  int64         `json:"bytes"`
	Total  int64         `json:"total"`
	Done   bool          `json:"done"`
}

// ExposeRequest asks for a file of one layer's image.
type ExposeRequest struct {
	Namespace string        `json:"namespace"`
	Manifest  digest.Digest `json:"manifest"`
	Ref       string        `json:"ref"`
	Layer     digest.Digest `json:"layer"`
}

// ExposeReply says where the file is, which lasts for as long as the stream.
type ExposeReply struct {
	Path string `json:"path"`
}

// Login tells remorad how a registry host is to be reached.
func (c *Client) Login(ctx context.Context, req *LoginRequest) error {
	_, err := c.images.Login(ctx, &controlv1.LoginRequest{Host: req.Host, User: req.User, Secret: req.Secret, PlainHttp: req.PlainHTTP})
	return err
}

// Prime has the start of an image begin before containerd knows of it.
func (c *Client) Prime(ctx context.Context, req *PrimeRequest) (*PrimeReply, error) {
	m, err := c.images.Prime(ctx, &controlv1.PrimeRequest{Namespace: req.Namespace, Ref: req.Ref})
	return &PrimeReply{Documents: all(m.GetDocuments(), documentOf), Registry: point(m.GetRegistry(), registryOf)}, err
}

func documentOf(m *controlv1.Document) Document {
	return Document{MediaType: m.GetMediaType(), Digest: digest.Digest(m.GetDigest()), Data: m.GetData()}
}

// Resolve returns when all layers of an image are open or have failed, and tells meanwhile how far the
// imports are.
func (c *Client) Resolve(ctx context.Context, req *ResolveRequest, progress func([]FetchProgress)) (*ResolveReply, error) {
	stream, err := c.images.Resolve(ctx, &controlv1.ResolveRequest{Namespace: req.Namespace, Manifest: req.Manifest.String(), Ref: req.Ref})
	end, err := receiveEnd(stream, err, (*controlv1.ResolveResponse).GetDone,
		func(m *controlv1.ResolveResponse) { progress(all(m.GetImporting(), progressOf)) })
	if err != nil {
		return nil, err
	}
	reply := &ResolveReply{Ordinary: map[digest.Digest]string{}}
	for d, reason := range end.GetOrdinary() {
		reply.Ordinary[digest.Digest(d)] = reason
	}
	return reply, nil
}

func progressOf(m *controlv1.LayerProgress) FetchProgress {
	return FetchProgress{Digest: digest.Digest(m.GetDigest()), Bytes: m.GetBytes(), Total: m.GetTotal(), Done: m.GetDone()}
}

// Fetch makes an image complete and tells progress how far each layer is; the last time a layer is Done.
func (c *Client) Fetch(ctx context.Context, req *FetchRequest, progress func(*FetchProgress)) error {
	stream, err := c.images.Fetch(ctx, &controlv1.FetchRequest{
		Namespace: req.Namespace, Manifest: req.Manifest.String(), Ref: req.Ref, CacheOnly: req.CacheOnly,
	})
	return receive(stream, err, func(m *controlv1.FetchResponse) {
		p := progressOf(m.GetLayer())
		progress(&p)
	})
}

// Expose has a file made of a layer's image until ctx ends, and calls ready when that is so.
func (c *Client) Expose(ctx context.Context, req *ExposeRequest, ready func(*ExposeReply)) error {
	stream, err := c.images.Expose(ctx, &controlv1.ExposeRequest{
		Namespace: req.Namespace, Manifest: req.Manifest.String(), Ref: req.Ref, Layer: req.Layer.String(),
	})
	return receive(stream, err, func(m *controlv1.ExposeResponse) { ready(&ExposeReply{Path: m.GetPath()}) })
}
