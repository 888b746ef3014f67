package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const maxMessage = 64 << 20 // a status of thousands of layers

// Dial returns a Client of the remorad behind a Unix socket. It connects at the first call.
func Dial(socket string) (*Client, io.Closer, error) {
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", addr)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, nil, err
	}
	return &Client{Conn: conn}, conn, nil
}

func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Explain makes an error of a call fit for people: what to do if nobody answers, and otherwise
// the message without gRPC's wrapping.
func Explain(err error, socket string) error {
	st, ok := status.FromError(err)
	switch {
	case err == nil || !ok:
		return err
	case st.Code() == codes.Unavailable && strings.Contains(st.Message(), "dial"):
		return fmt.Errorf("remorad does not answer on %s: is it running? (systemctl status remorad, or --remora SOCKET)", socket)
	}
	return errors.New(st.Message())
}
