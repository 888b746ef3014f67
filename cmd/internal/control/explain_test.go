package control

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/version"
)

// TestOlderRemorad: remorad had another service, with other messages, before there was a .proto file.
func TestOlderRemorad(t *testing.T) {
	c, socket := serve(t)
	_, err := c.Status(t.Context())
	wantOtherRelease(t, err, socket)
	err = c.Trace(t.Context(), func(*TraceEvent) { t.Error("an event") })
	wantOtherRelease(t, err, socket)
}

// olderNode has the service, but none of its calls.
type olderNode struct {
	controlv1.UnimplementedNodeServer
}

// TestOlderVersionOfService: a call is newer than the service that it belongs to.
func TestOlderVersionOfService(t *testing.T) {
	c, socket := serveNode(t, &olderNode{})
	_, err := c.Prune(t.Context())
	wantOtherRelease(t, err, socket)
}

func wantOtherRelease(t *testing.T, err error, socket string) {
	t.Helper()
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v, want the code of a call that is not known", err)
	}
	for _, part := range []string{socket, version.String(), "another release", "restart remorad"} {
		if got := Explain(err, socket); !strings.Contains(got.Error(), part) {
			t.Errorf("%q does not say %q", got, part)
		}
	}
}

func TestExplain(t *testing.T) {
	c, closer, err := Dial("/nowhere/remora.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	_, err = c.Status(t.Context())
	want := "remorad does not answer on /nowhere/remora.sock: is it running?"
	if got := Explain(err, "/nowhere/remora.sock"); !strings.Contains(got.Error(), want) {
		t.Errorf("nobody there: %v", got)
	}
	if got := Explain(status.Error(codes.NotFound, "volume x: no such volume"), "s"); got.Error() != "volume x: no such volume" {
		t.Errorf("an error of a call: %v", got)
	}
	if got := Explain(nil, "s"); got != nil {
		t.Errorf("no error: %v", got)
	}
	if got := Explain(errEnded, "s"); got != errEnded {
		t.Errorf("our own: %v", got)
	}
}

// TestEndsEarly: a stream that ends without its last message is an error.
func TestEndsEarly(t *testing.T) {
	c, _ := serve(t, grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return nil }))
	if _, err := c.DetachVolume(t.Context(), &DetachVolumeRequest{}, func(*DetachVolumeReply) {}); err != errEnded {
		t.Errorf("got %v, want %v", err, errEnded)
	}
	if err := c.Fetch(t.Context(), &FetchRequest{}, func(*FetchProgress) {}); err != nil {
		t.Errorf("Fetch has no last message: %v", err)
	}
}

// TestEmptyLists: answers have lists, not null, for programs that read --json.
func TestEmptyLists(t *testing.T) {
	c, _ := serve(t, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		d, err := method(stream)
		if err != nil {
			return err
		}
		m := dynamicpb.NewMessage(d.Output())
		for _, name := range []string{"report", "rebuilt"} {
			if fd := m.Descriptor().Fields().ByTextName(name); fd != nil {
				f := filler{}
				f.message(m.Mutable(fd).Message())
				for _, list := range fieldNames(m.Mutable(fd).Message()) {
					if list.IsList() {
						m.Mutable(fd).Message().Clear(list)
					}
				}
			}
		}
		return stream.SendMsg(m)
	}))
	all := calls()
	for name, keys := range map[string][]string{
		"Node.Status":                 {"layers", "broken", "waiting"},
		"Node.ListCache":              {"entries"},
		"Disks.ListDisks":             {"disks"},
		"Volumes.ListVolumes":         {"volumes"},
		"Volumes.ListAttachedVolumes": {"volumes"},
		"Volumes.InspectVolume":       {"waits", "events"},
		"Volumes.CheckVolume":         {"problems"},
		"Volumes.RebuildVolume":       {"problems", "stale", "lost"},
		"Volumes.ListJournals":        {"journals"},
	} {
		reply, err := all[protoreflect.FullName("remora.control.v1."+name)].do(t.Context(), c, func(any) {})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		data, err := json.Marshal(reply)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if !bytes.Contains(data, []byte(`"`+key+`":[]`)) {
				t.Errorf("%s has no empty list %s: %s", name, key, data)
			}
		}
	}
}
