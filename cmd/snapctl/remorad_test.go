package main

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// A fakeRemorad is a node of remorad's control API, on which a test says what there is. It has no layers, disks and volumes
// but those.
type fakeRemorad struct {
	controlv1.UnimplementedNodeServer
	controlv1.UnimplementedImagesServer
	controlv1.UnimplementedDisksServer
	controlv1.UnimplementedVolumesServer

	mu       sync.Mutex // guards the fields below
	asked    []proto.Message
	refuse   map[string]error // by the name of a request's message
	status   *controlv1.StatusResponse
	cache    *controlv1.ListCacheResponse
	prime    []*controlv1.Document
	older    bool // it does not say with them how registries are reached
	resolve  []*controlv1.ResolveResponse
	fetch    []*controlv1.FetchResponse
	expose   string
	record   *controlv1.RecordResponse // nil: recordings cannot be made
	read     []byte                    // the profile of every recording
	profiles map[string][]byte         // by manifest
	trace    []*controlv1.TraceResponse
	disks    []*controlv1.Disk
	volumes  []*controlv1.Volume
	details  *controlv1.InspectVolumeResponse
	steps    []string // of what takes a while
	warnings []string
	device   string // of volumes that are made
	fresh    bool   // volumes that are attached were never written to
	report   *controlv1.VolumeReport
	rebuilt  *controlv1.RebuiltVolume
	journals []*controlv1.Journal
	ended    int // streams that their caller has ended
}

// newRemorad serves on the user's socket until the test ends.
func newRemorad(u *user) *fakeRemorad {
	u.t.Helper()
	f := &fakeRemorad{
		refuse: map[string]error{}, profiles: map[string][]byte{},
		status: &controlv1.StatusResponse{
			Version: "test", Root: "/var/lib/remora", Backend: &controlv1.Backend{Name: "fuse-file", Reason: "pinned", Direct: true, Idmap: true},
			Cache: &controlv1.CacheUsage{Bytes: 1 << 20, Limit: 10 << 30}, Registry: &controlv1.Registry{}, Holder: &controlv1.Holder{Pid: 7},
		},
		cache: &controlv1.ListCacheResponse{Usage: &controlv1.CacheUsage{Bytes: 1 << 20, Limit: 10 << 30, Pinned: 1 << 10}},
	}
	l, err := new(net.ListenConfig).Listen(u.t.Context(), "unix", u.remorad)
	if err != nil {
		u.t.Fatal(err)
	}
	s := grpc.NewServer()
	controlv1.RegisterNodeServer(s, f)
	controlv1.RegisterImagesServer(s, f)
	controlv1.RegisterDisksServer(s, f)
	controlv1.RegisterVolumesServer(s, f)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	u.t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			u.t.Error(err)
		}
	})
	return f
}

// set changes what there is.
func (f *fakeRemorad) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// ask notes a request, and returns why it is refused.
func (f *fakeRemorad) ask(req proto.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, proto.Clone(req))
	return f.refuse[string(req.ProtoReflect().Descriptor().Name())]
}

// requests returns the requests of a kind, as they came.
func requests[Request proto.Message](f *fakeRemorad) (all []Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.asked {
		if r, ok := r.(Request); ok {
			all = append(all, r)
		}
	}
	return all
}

// last insists on a request of a kind and returns the last one.
func last[Request proto.Message](t *testing.T, f *fakeRemorad) Request {
	t.Helper()
	all := requests[Request](f)
	if len(all) == 0 {
		t.Fatalf("no such request: %T", *new(Request))
	}
	return all[len(all)-1]
}

// answer asks, and answers with what is made while nothing changes.
func answer[Reply any](f *fakeRemorad, req proto.Message, reply func() (*Reply, error)) (*Reply, error) {
	if err := f.ask(req); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return reply()
}

// stream asks, and answers with several messages.
func stream[Reply any](f *fakeRemorad, req proto.Message, to grpc.ServerStreamingServer[Reply], replies func() []*Reply) error {
	if err := f.ask(req); err != nil {
		return err
	}
	f.mu.Lock()
	all := replies()
	f.mu.Unlock()
	for _, r := range all {
		if err := to.Send(r); err != nil {
			return err
		}
	}
	return nil
}

// untilLeft waits for the caller of a stream to end it.
func (f *fakeRemorad) untilLeft(ctx context.Context) error {
	<-ctx.Done()
	f.set(func() { f.ended++ })
	return nil
}

// left returns how many streams their callers have ended.
func (f *fakeRemorad) left() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

func (f *fakeRemorad) Status(_ context.Context, req *controlv1.StatusRequest) (*controlv1.StatusResponse, error) {
	return answer(f, req, func() (*controlv1.StatusResponse, error) { return proto.CloneOf(f.status), nil })
}

func (f *fakeRemorad) Detach(_ context.Context, req *controlv1.DetachRequest) (*controlv1.DetachResponse, error) {
	return answer(f, req, func() (*controlv1.DetachResponse, error) {
		return &controlv1.DetachResponse{Layers: int64(len(f.status.Layers))}, nil
	})
}

func (f *fakeRemorad) ListCache(_ context.Context, req *controlv1.ListCacheRequest) (*controlv1.ListCacheResponse, error) {
	return answer(f, req, func() (*controlv1.ListCacheResponse, error) { return proto.CloneOf(f.cache), nil })
}

func (f *fakeRemorad) Pin(_ context.Context, req *controlv1.PinRequest) (*controlv1.PinResponse, error) {
	return answer(f, req, func() (*controlv1.PinResponse, error) { return &controlv1.PinResponse{Layers: 2}, nil })
}

func (f *fakeRemorad) Prune(_ context.Context, req *controlv1.PruneRequest) (*controlv1.PruneResponse, error) {
	return answer(f, req, func() (*controlv1.PruneResponse, error) { return &controlv1.PruneResponse{Bytes: 3 << 20}, nil })
}

func (f *fakeRemorad) Login(_ context.Context, req *controlv1.LoginRequest) (*controlv1.LoginResponse, error) {
	return answer(f, req, func() (*controlv1.LoginResponse, error) { return &controlv1.LoginResponse{}, nil })
}

func (f *fakeRemorad) Prime(_ context.Context, req *controlv1.PrimeRequest) (*controlv1.PrimeResponse, error) {
	return answer(f, req, func() (*controlv1.PrimeResponse, error) {
		m := &controlv1.PrimeResponse{Documents: f.prime}
		if !f.older {
			m.Registry = f.status.GetRegistry()
		}
		return m, nil
	})
}

func (f *fakeRemorad) Resolve(req *controlv1.ResolveRequest, to grpc.ServerStreamingServer[controlv1.ResolveResponse]) error {
	return stream(f, req, to, func() []*controlv1.ResolveResponse { return f.resolve })
}

func (f *fakeRemorad) Fetch(req *controlv1.FetchRequest, to grpc.ServerStreamingServer[controlv1.FetchResponse]) error {
	return stream(f, req, to, func() []*controlv1.FetchResponse { return f.fetch })
}

func (f *fakeRemorad) Expose(req *controlv1.ExposeRequest, to grpc.ServerStreamingServer[controlv1.ExposeResponse]) error {
	if err := stream(f, req, to, func() []*controlv1.ExposeResponse { return []*controlv1.ExposeResponse{{Path: f.expose}} }); err != nil {
		return err
	}
	return f.untilLeft(to.Context())
}

func (f *fakeRemorad) Record(req *controlv1.RecordRequest, to grpc.ServerStreamingServer[controlv1.RecordResponse]) error {
	if err := stream(f, req, to, func() []*controlv1.RecordResponse { return []*controlv1.RecordResponse{f.record} }); err != nil {
		return err
	}
	return f.untilLeft(to.Context())
}

func (f *fakeRemorad) GetRecording(_ context.Context, req *controlv1.GetRecordingRequest) (*controlv1.GetRecordingResponse, error) {
	return answer(f, req, func() (*controlv1.GetRecordingResponse, error) {
		return &controlv1.GetRecordingResponse{Profile: f.read}, nil
	})
}

func (f *fakeRemorad) EndRecording(_ context.Context, req *controlv1.EndRecordingRequest) (*controlv1.EndRecordingResponse, error) {
	return answer(f, req, func() (*controlv1.EndRecordingResponse, error) { return &controlv1.EndRecordingResponse{}, nil })
}

func (f *fakeRemorad) GetProfile(_ context.Context, req *controlv1.GetProfileRequest) (*controlv1.GetProfileResponse, error) {
	return answer(f, req, func() (*controlv1.GetProfileResponse, error) {
		return &controlv1.GetProfileResponse{Profile: f.profiles[req.Manifest]}, nil
	})
}

func (f *fakeRemorad) AddProfile(_ context.Context, req *controlv1.AddProfileRequest) (*controlv1.AddProfileResponse, error) {
	return answer(f, req, func() (*controlv1.AddProfileResponse, error) {
		f.profiles[req.Manifest] = req.Profile
		return &controlv1.AddProfileResponse{Profile: req.Profile}, nil
	})
}

func (f *fakeRemorad) RemoveProfile(_ context.Context, req *controlv1.RemoveProfileRequest) (*controlv1.RemoveProfileResponse, error) {
	return answer(f, req, func() (*controlv1.RemoveProfileResponse, error) {
		delete(f.profiles, req.Manifest)
		return &controlv1.RemoveProfileResponse{}, nil
	})
}

func (f *fakeRemorad) Trace(req *controlv1.TraceRequest, to grpc.ServerStreamingServer[controlv1.TraceResponse]) error {
	now := timestamppb.New(time.Now())
	if err := stream(f, req, to, func() []*controlv1.TraceResponse {
		all := []*controlv1.TraceResponse{{}}
		for _, e := range f.trace {
			e.Began, e.Took = now, durationpb.New(time.Millisecond)
			all = append(all, e)
		}
		return all
	}); err != nil {
		return err
	}
	return f.untilLeft(to.Context())
}

func (f *fakeRemorad) AttachDisk(_ context.Context, req *controlv1.AttachDiskRequest) (*controlv1.AttachDiskResponse, error) {
	return answer(f, req, func() (*controlv1.AttachDiskResponse, error) {
		d := &controlv1.Disk{Device: "/dev/loop7", File: req.File, SizeBytes: 1 << 20, SectorBytes: req.SectorBytes, ReadOnly: req.ReadOnly}
		f.disks = append(f.disks, d)
		return &controlv1.AttachDiskResponse{Disk: d}, nil
	})
}

func (f *fakeRemorad) DetachDisk(_ context.Context, req *controlv1.DetachDiskRequest) (*controlv1.DetachDiskResponse, error) {
	return answer(f, req, func() (*controlv1.DetachDiskResponse, error) {
		for i, d := range f.disks {
			if d.Device == req.Name || d.File == req.Name {
				f.disks = slices.Delete(f.disks, i, i+1)
				return &controlv1.DetachDiskResponse{Disk: d}, nil
			}
		}
		return &controlv1.DetachDiskResponse{}, nil
	})
}

func (f *fakeRemorad) ListDisks(_ context.Context, req *controlv1.ListDisksRequest) (*controlv1.ListDisksResponse, error) {
	return answer(f, req, func() (*controlv1.ListDisksResponse, error) { return &controlv1.ListDisksResponse{Disks: f.disks}, nil })
}

// refusal is an error as remorad returns it.
func refusal(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}
