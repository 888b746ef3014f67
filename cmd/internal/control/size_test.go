package control

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// bigNode answers with a message of some bytes.
type bigNode struct {
	controlv1.UnimplementedNodeServer
	bytes int
}

func (b *bigNode) Status(context.Context, *controlv1.StatusRequest) (*controlv1.StatusResponse, error) {
	return &controlv1.StatusResponse{Root: strings.Repeat("x", b.bytes)}, nil
}

// serveNode is serve for the Node service.
func serveNode(t *testing.T, node controlv1.NodeServer) (c *Client, socket string) {
	t.Helper()
	s := grpc.NewServer()
	controlv1.RegisterNodeServer(s, node)
	return serveServer(t, s)
}

// TestLargeAnswers: a status of thousands of layers comes, and what is larger than any is refused, not kept in memory.
func TestLargeAnswers(t *testing.T) {
	const large = 8 << 20 // twice what gRPC's clients take by default
	c, _ := serveNode(t, &bigNode{bytes: large})
	st, err := c.Status(t.Context())
	if err != nil || len(st.Root) != large {
		t.Errorf("an answer of %d bytes: %v", large, err)
	}
	c, _ = serveNode(t, &bigNode{bytes: controlv1.MaxAnswer})
	if _, err := c.Status(t.Context()); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an answer that is too large: got %v, want ResourceExhausted", err)
	}
}
