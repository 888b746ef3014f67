package control

import (
	"context"
	"errors"

	"google.golang.org/grpc"
)

// streamHandler answers a call by many messages.
func streamHandler[Req, Reply any](name string, call func(Server, context.Context, *Req, func(*Reply) error) error) grpc.StreamDesc {
	return grpc.StreamDesc{StreamName: name, ServerStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
		in := new(Req)
		if err := stream.RecvMsg(in); err != nil {
			return err
		}
		return call(srv.(Server), stream.Context(), in, func(p *Reply) error { return stream.SendMsg(p) })
	}}
}

// receive makes a call that is answered by many messages, until the server or ctx ends it.
func receive[Req, Reply any](ctx context.Context, c *Client, name string, req *Req, each func(*Reply)) error {
	stream, err := c.Conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+service+"/"+name, grpc.CallContentSubtype(codec))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		p := new(Reply)
		if err := stream.RecvMsg(p); err != nil {
			return endOfStream(err)
		}
		each(p)
	}
}

var errEnded = errors.New("remorad ended before it was done")

// receiveEnd makes a call whose last message ends it, and returns that one. The others say how it goes.
func receiveEnd[Req, Reply any](ctx context.Context, c *Client, name string, req *Req, ends func(*Reply) bool, each func(*Reply)) (end *Reply, err error) {
	err = receive(ctx, c, name, req, func(r *Reply) {
		if ends(r) {
			end = r
		} else {
			each(r)
		}
	})
	if err == nil && end == nil {
		err = errEnded
	}
	return end, err
}
