package main

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/snapshotter/layers"
)

const traceBuffer = 4096 // events that wait for a slow listener; more are dropped

// Trace sends what happens for as long as the caller stays.
func (i *imagesService) Trace(_ *controlv1.TraceRequest, stream grpc.ServerStreamingServer[controlv1.TraceResponse]) error {
	events := make(chan layers.Span, traceBuffer)
	stop := i.sn.Trace(func(s layers.Span) {
		select {
		case events <- s:
		default:
		}
	})
	defer stop()
	if err := stream.Send(&controlv1.TraceResponse{}); err != nil {
		return err
	}
	for {
		select {
		case s := <-events:
			if err := stream.Send(spanMessage(s)); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

func spanMessage(s layers.Span) *controlv1.TraceResponse {
	m := &controlv1.TraceResponse{
		Kind: s.Kind, Digest: s.Digest.String(), Purpose: s.For, Off: s.Off, Len: s.Len, Pid: int32(s.PID), What: text(s.What),
		Began: timestamppb.New(s.Began), Took: durationpb.New(s.Took),
	}
	if s.Err != nil {
		m.Err = text(s.Err.Error())
	}
	return m
}
