package control

import (
	"errors"
	"io"

	"google.golang.org/grpc"
)

// receive takes the messages of a call's answer, until the server or the call's context ends it.
func receive[Message any](stream grpc.ServerStreamingClient[Message], err error, each func(*Message)) error {
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		each(m)
	}
}

var errEnded = errors.New("remorad ended before it was done")

// receiveEnd takes the messages of an answer whose last one ends it, and returns that one. The others say how it goes.
func receiveEnd[Message any](stream grpc.ServerStreamingClient[Message], err error, ends func(*Message) bool, each func(*Message)) (
	end *Message, _ error) {
	err = receive(stream, err, func(m *Message) {
		if ends(m) {
			end = m
		} else {
			each(m)
		}
	})
	if err == nil && end == nil {
		err = errEnded
	}
	return end, err
}
