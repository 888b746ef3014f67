package main

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/version"
)

// controls are the services of the control API.
type controls struct {
	node    *nodeService
	images  *imagesService
	disks   *disksService
	volumes *volumes
}

// register adds the services to a server, and a description of all of its services.
func (c controls) register(s *grpc.Server) {
	controlv1.RegisterNodeServer(s, c.node)
	controlv1.RegisterImagesServer(s, c.images)
	controlv1.RegisterDisksServer(s, c.disks)
	controlv1.RegisterVolumesServer(s, c.volumes)
	reflection.RegisterV1(s)
}

// controlOptions are what a server of the control API needs.
func controlOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(controlv1.MaxRequest),
		grpc.UnknownServiceHandler(unknownCall),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			reply, err := handle(ctx, req)
			return reply, statusOf(err)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return statusOf(handle(srv, stream))
		}),
	}
}

// unknownCall answers callers of another release, whose messages may have another encoding as well: none is read.
func unknownCall(_ any, stream grpc.ServerStream) error {
	call, _ := grpc.MethodFromServerStream(stream)
	return status.Errorf(codes.Unimplemented, "remorad %s does not know the call %s: the caller (snapctl?) is of another release; "+
		"install snapctl and remorad of one release, and restart remorad", version.String(), call)
}

// text makes a string that comes from outside fit for a message, which must be UTF-8.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// list translates a list into messages.
func list[From, To any](from []From, message func(From) To) []To {
	to := make([]To, 0, len(from))
	for _, x := range from {
		to = append(to, message(x))
	}
	return to
}
