package control

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// serve has a server on a socket and returns a client of it.
func serve(t *testing.T, opts ...grpc.ServerOption) (c *Client, socket string) {
	t.Helper()
	return serveServer(t, grpc.NewServer(opts...))
}

func serveServer(t *testing.T, s *grpc.Server) (c *Client, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c, closer, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closer.Close()
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, socket
}

// method returns the description of the call that a stream is.
func method(stream grpc.ServerStream) (protoreflect.MethodDescriptor, error) {
	name, _ := grpc.MethodFromServerStream(stream)
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.Trim(name, "/"), "/", ".")))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d.(protoreflect.MethodDescriptor), nil
}

// A call is one of the API. Its request's fields are filled; it hands what it is told meanwhile to told.
type call struct {
	request any // pointer
	do      func(ctx context.Context, c *Client, told func(any)) (reply any, err error)
	fixed   bool                // the request is filled already
	tells   []protoreflect.Name // fields of messages before the last one, which has the others
}

func calls() map[protoreflect.FullName]call {
	all := map[protoreflect.FullName]call{}
	for _, more := range []map[protoreflect.FullName]call{nodeCalls(), imageCalls(), volumeCalls()} {
		for name, c := range more {
			all["remora.control.v1."+name] = c
		}
	}
	return all
}

// TestEveryField sends every call through a socket. The server's messages have all fields set; all of them must be in the
// answer, in JSON by the same name and as a number where they are one. All of a request must reach the server.
func TestEveryField(t *testing.T) {
	all := calls()
	for _, file := range []protoreflect.FileDescriptor{
		controlv1.File_cmd_control_v1_node_proto, controlv1.File_cmd_control_v1_images_proto,
		controlv1.File_cmd_control_v1_disks_proto, controlv1.File_cmd_control_v1_volumes_proto,
	} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for k := range methods.Len() {
				name := methods.Get(k).FullName()
				c, ok := all[name]
				if !ok {
					t.Errorf("%s is not tested", name)
					continue
				}
				t.Run(string(name.Parent().Name()+"."+name.Name()), func(t *testing.T) {
					for bit := range 7 {
						checkCall(t, c, &filler{bit: bit})
					}
				})
			}
		}
	}
}

func checkCall(t *testing.T, c call, f *filler) {
	var request, last protoreflect.Message
	var before []protoreflect.Message
	client, _ := serve(t, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		d, err := method(stream)
		if err != nil {
			return err
		}
		in := dynamicpb.NewMessage(d.Input())
		if err := stream.RecvMsg(in); err != nil {
			return err
		}
		request = in
		if len(c.tells) > 0 {
			m := dynamicpb.NewMessage(d.Output())
			f.message(m)
			keep(m, c.tells, true)
			before = append(before, m)
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
		m := dynamicpb.NewMessage(d.Output())
		f.message(m)
		keep(m, c.tells, false)
		last = m
		return stream.SendMsg(m)
	}))
	if c.request != nil {
		if !c.fixed {
			f.request(reflect.ValueOf(c.request).Elem())
		}
	}
	var told []any
	reply, err := c.do(t.Context(), client, func(v any) { told = append(told, v) })
	if err != nil {
		t.Fatal(err)
	}
	if c.request != nil {
		checkSame(t, "request", object(t, c.request), request)
	} else if len(fieldNames(request)) > 0 {
		t.Errorf("the request has fields that are not tested: %v", fieldNames(request))
	}
	checkSame(t, "reply", object(t, reply), last)
	if len(told) != len(before) {
		t.Fatalf("told %v, sent %v", told, before)
	}
	for i := range told {
		checkSame(t, "told", object(t, told[i]), before[i])
	}
}

// keep clears the fields of a message but for those of the names, or those.
func keep(m protoreflect.Message, names []protoreflect.Name, those bool) {
	for _, fd := range fieldNames(m) {
		listed := false
		for _, name := range names {
			listed = listed || name == fd.Name()
		}
		if listed != those {
			m.Clear(fd)
		}
	}
}

func fieldNames(m protoreflect.Message) (all []protoreflect.FieldDescriptor) {
	for i := range m.Descriptor().Fields().Len() {
		all = append(all, m.Descriptor().Fields().Get(i))
	}
	return all
}
