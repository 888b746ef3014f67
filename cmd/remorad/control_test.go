package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/version"
)

// serveControls has a server of the control API, of which only calls work that need nothing of the node.
func serveControls(t *testing.T) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(controlOptions()...)
	controls{node: &nodeService{}, images: &imagesService{}, disks: &disksService{}, volumes: &volumes{}}.register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// olderCodec is how messages were encoded before there were .proto files.
type olderCodec struct{}

func (olderCodec) Name() string                       { return "remora-json" }
func (olderCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (olderCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// TestCallerOfAnotherRelease: what an older or newer snapctl prints is the message, so it must say what to do.
func TestCallerOfAnotherRelease(t *testing.T) {
	conn := serveControls(t)
	for name, call := range map[string]func() error{
		"an older snapctl": func() error {
			in, out := map[string]string{}, map[string]any{}
			return conn.Invoke(t.Context(), "/remora.v1.Control/Status", &in, &out, grpc.ForceCodec(olderCodec{}))
		},
		"an older snapctl's stream": func() error {
			s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/remora.v1.Control/Trace", grpc.ForceCodec(olderCodec{}))
			if err != nil {
				return err
			}
			if err := s.SendMsg(map[string]string{}); err != nil {
				return err
			}
			return s.RecvMsg(&map[string]any{})
		},
		"a call that a newer one has": func() error {
			return conn.Invoke(t.Context(), "/remora.control.v1.Node/Newer", &controlv1.StatusRequest{}, &controlv1.StatusResponse{})
		},
	} {
		err := call()
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: got %v, want Unimplemented", name, err)
			continue
		}
		for _, part := range []string{version.String(), "another release", "install snapctl and remorad of one release"} {
			if !strings.Contains(status.Convert(err).Message(), part) {
				t.Errorf("%s: %q does not say %q", name, status.Convert(err).Message(), part)
			}
		}
	}
}

// TestReflection: grpcurl finds the services without files.
func TestReflection(t *testing.T) {
	s, err := reflectionv1.NewServerReflectionClient(serveControls(t)).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}
	if err := s.Send(ask); err != nil {
		t.Fatal(err)
	}
	reply, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range reply.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	for _, want := range []string{"Node", "Images", "Disks", "Volumes"} {
		if !slices.Contains(names, "remora.control.v1."+want) {
			t.Errorf("%s is not among %q", want, names)
		}
	}
}

// TestRequestSize: a request as large as may be is read, a larger one is not.
func TestRequestSize(t *testing.T) {
	images := controlv1.NewImagesClient(serveControls(t))
	const rest = 16 // for the message around the profile
	for size, want := range map[int]codes.Code{
		controlv1.MaxRequest - rest: codes.InvalidArgument, // it is no profile
		controlv1.MaxRequest:        codes.ResourceExhausted,
	} {
		_, err := images.AddProfile(t.Context(), &controlv1.AddProfileRequest{Profile: make([]byte, size)})
		if status.Code(err) != want {
			t.Errorf("a profile of %d bytes: got %v, want %s", size, err, want)
		}
	}
}

func TestInvalidRequests(t *testing.T) {
	conn := serveControls(t)
	_, err := controlv1.NewDisksClient(conn).AttachDisk(t.Context(), &controlv1.AttachDiskRequest{File: "disk.img", SectorBytes: 4096})
	if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != "disk.img is no absolute path" {
		t.Errorf("a relative path: got %v", err)
	}
	s, err := controlv1.NewVolumesClient(conn).InitStore(t.Context(), &controlv1.InitStoreRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != errNoStore.Error() {
		t.Errorf("no store: got %v", err)
	}
}

func TestStatusOf(t *testing.T) {
	for _, c := range codesOf {
		err := fmt.Errorf("volume data: %w", c.err)
		got := status.Convert(statusOf(errors.Join(err)))
		if got.Code() != c.code || got.Message() != err.Error() {
			t.Errorf("%v: got %s %q, want %s", c.err, got.Code(), got.Message(), c.code)
		}
	}
	for name, err := range map[string]error{
		"none":        nil,
		"another one": errors.New("disk on fire"),
		"a status":    status.Error(codes.Aborted, "no"),
		"caller gone": fmt.Errorf("wait: %w", context.Canceled),
	} {
		if got := statusOf(err); got != err {
			t.Errorf("%s: got %v, want %v", name, got, err)
		}
	}
}
