package control

import (
	"context"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// Client speaks to remorad. It is safe for concurrent use.
type Client struct {
	node    controlv1.NodeClient
	images  controlv1.ImagesClient
	disks   controlv1.DisksClient
	volumes controlv1.VolumesClient
}

// New returns a Client that speaks over a connection.
func New(conn grpc.ClientConnInterface) *Client {
	return &Client{
		node: controlv1.NewNodeClient(conn), images: controlv1.NewImagesClient(conn),
		disks: controlv1.NewDisksClient(conn), volumes: controlv1.NewVolumesClient(conn),
	}
}

// Try returns the error that a call would end with if nobody listens on a remorad's socket. It makes none.
func Try(ctx context.Context, socket string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return conn.Close()
}

// Dial returns a Client of the remorad behind a Unix socket. It connects at the first call.
func Dial(socket string) (*Client, io.Closer, error) {
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", addr)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(controlv1.MaxAnswer)))
	if err != nil {
		return nil, nil, err
	}
	return New(conn), conn, nil
}
