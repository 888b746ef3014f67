package main

import (
	"context"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/snapshotter/start"
)

// imagesService does what clients ask for images.
type imagesService struct {
	controlv1.UnsafeImagesServer
	cfg        *config
	sn         *snapshotter.Snapshotter
	registry   *registry.Registry
	containerd *client.Client
}

// Login implements controlv1.ImagesServer.
func (i *imagesService) Login(_ context.Context, req *controlv1.LoginRequest) (*controlv1.LoginResponse, error) {
	login := registry.Login{User: req.GetUser(), Secret: req.GetSecret(), PlainHTTP: req.GetPlainHttp()}
	err := i.registry.SetLogin(req.GetHost(), login)
	i.sn.CredentialsChanged()
	return &controlv1.LoginResponse{}, err
}

// Prime implements controlv1.ImagesServer.
func (i *imagesService) Prime(ctx context.Context, req *controlv1.PrimeRequest) (*controlv1.PrimeResponse, error) {
	docs, err := i.sn.Prime(ctx, req.GetNamespace(), req.GetRef())
	if err != nil {
		return nil, err
	}
	return &controlv1.PrimeResponse{Documents: list(docs, documentMessage), Registry: registryMessage(i.cfg)}, nil
}

func documentMessage(d start.Document) *controlv1.Document {
	return &controlv1.Document{MediaType: text(d.Descriptor.MediaType), Digest: d.Descriptor.Digest.String(), Data: d.Data}
}

// Resolve implements controlv1.ImagesServer.
func (i *imagesService) Resolve(req *controlv1.ResolveRequest, stream grpc.ServerStreamingServer[controlv1.ResolveResponse]) error {
	ctx, cancel := context.WithCancelCause(namespaces.WithNamespace(stream.Context(), req.GetNamespace()))
	defer cancel(nil)
	reasons, err := i.sn.Resolve(ctx, digest.Digest(req.GetManifest()), req.GetRef(), func(all []snapshotter.Progress) {
		if err := stream.Send(&controlv1.ResolveResponse{Importing: list(all, importMessage)}); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		return err
	}
	end := &controlv1.ResolveResponse{Ordinary: map[string]string{}, Done: true}
	for d, reason := range reasons {
		end.Ordinary[d.String()] = text(reason)
	}
	return stream.Send(end)
}

func importMessage(p snapshotter.Progress) *controlv1.LayerProgress {
	return &controlv1.LayerProgress{Digest: p.Digest.String(), Bytes: p.Came, Total: p.Total, Done: p.Came == p.Total}
}

// Expose keeps the file of a layer's image for as long as the caller stays.
func (i *imagesService) Expose(req *controlv1.ExposeRequest, stream grpc.ServerStreamingServer[controlv1.ExposeResponse]) error {
	ctx := namespaces.WithNamespace(stream.Context(), req.GetNamespace())
	path, end, err := i.sn.Expose(ctx, digest.Digest(req.GetManifest()), digest.Digest(req.GetLayer()), req.GetRef())
	if err != nil {
		return err
	}
	defer end()
	if err := stream.Send(&controlv1.ExposeResponse{Path: path}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
