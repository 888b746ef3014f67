// Package control is how snapctl speaks to remorad: a gRPC service on the same socket as
// containerd's snapshots service, with JSON messages, so that it needs no generated code.
package control

import (
	"context"
	"encoding/json"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// StatusReply is also what `snapctl status --json` prints. Sizes are in bytes.
type StatusReply struct {
	Version  string     `json:"version"`
	Root     string     `json:"root"`
	Backend  Backend    `json:"backend"`
	Cache    CacheUsage `json:"cache"`
	Registry Registry   `json:"registry"`
	Layers   []Layer    `json:"layers"`
	Broken   []Broken   `json:"broken"`
	Waiting  []Waiting  `json:"waiting"`
	Holder   Holder     `json:"holder"`
}

// Holder is the process that keeps mounts alive while remorad is not there. PID is 0 if there is
// none.
type Holder struct {
	PID int `json:"pid"`
}

// Waiting is a process that has waited for missing data for more than a second.
type Waiting struct {
	PID       int           `json:"pid"`
	Command   string        `json:"command,omitempty"`
	Container string        `json:"container,omitempty"`
	Image     string        `json:"image"`
	Digest    digest.Digest `json:"digest"`
	Seconds   float64       `json:"seconds"`
	Reason    string        `json:"reason,omitempty"`
}

// Backend is how incomplete layers are mounted, and complete ones.
type Backend struct {
	Name         string `json:"name"`
	Reason       string `json:"reason"`
	Direct       bool   `json:"direct"`
	DirectReason string `json:"direct_reason,omitempty"`
	// IDMap says whether containers in user namespaces can share the layers.
	IDMap       bool   `json:"idmap"`
	IDMapReason string `json:"idmap_reason,omitempty"`
}

// CacheUsage is the cache's use of its budget. A limit of 0 is none.
type CacheUsage struct {
	Bytes  int64 `json:"bytes"`
	Limit  int64 `json:"limit"`
	Pinned int64 `json:"pinned"` // cannot be evicted: mounts read it without asking, or it was pinned
}

// Registry is what snapctl needs to reach registries as remorad does.
type Registry struct {
	ConfigPath   []string `json:"config_path,omitempty"`
	DockerConfig string   `json:"docker_config,omitempty"`
}

// Layer is one snapshot of a remote layer.
type Layer struct {
	Digest       digest.Digest `json:"digest"`
	Image        string        `json:"image"`
	Snapshot     string        `json:"snapshot"`
	Format       string        `json:"format"`
	Backend      string        `json:"backend"`
	State        string        `json:"state"`
	Reason       string        `json:"reason,omitempty"`
	Verified     bool          `json:"verified"`
	PresentBytes int64         `json:"present_bytes"`
	TotalBytes   int64         `json:"total_bytes"`
	FetchedBytes int64         `json:"fetched_bytes"`
	ReadBytes    int64         `json:"read_bytes"` // packed, of what readers asked for since remorad started
	// Of the packed bytes since remorad started: fetched before anybody waited for them, those of them
	// that readers asked for, and fetched because a reader waited.
	PrefetchedBytes   int64   `json:"prefetched_bytes"`
	PrefetchUsedBytes int64   `json:"prefetch_used_bytes"`
	DemandBytes       int64   `json:"demand_bytes"`
	Waits             int64   `json:"waits"` // reads that waited for the network
	WaitSeconds       float64 `json:"wait_seconds"`
	DiskBytes         int64   `json:"disk_bytes"`
}

// Broken is an active snapshot whose processes may get EIO.
type Broken struct {
	Container string `json:"container,omitempty"` // namespace/name
	Snapshot  string `json:"snapshot"`
	Mounted   string `json:"mounted"`
	Reason    string `json:"reason"`
}

// LoginRequest tells remorad how a registry host is to be reached.
type LoginRequest struct {
	Host      string `json:"host"`
	User      string `json:"user,omitempty"`
	Secret    string `json:"secret,omitempty"`
	PlainHTTP bool   `json:"plain_http,omitempty"`
}

// ResolveRequest names a manifest in containerd's content store.
type ResolveRequest struct {
	Namespace string        `json:"namespace"`
	Manifest  digest.Digest `json:"manifest"`
	Ref       string        `json:"ref"`
}

// ResolveReply is sent again and again while layers are imported. The last one has Done and says which
// layers take the ordinary path, and why.
type ResolveReply struct {
	Importing []FetchProgress          `json:"importing,omitempty"`
	Ordinary  map[digest.Digest]string `json:"ordinary,omitempty"`
	Done      bool                     `json:"done"`
}

// FetchRequest asks for all of an image.
type FetchRequest struct {
	Namespace string        `json:"namespace"`
	Manifest  digest.Digest `json:"manifest"`
	Ref       string        `json:"ref"`
	CacheOnly bool          `json:"cache_only,omitempty"`
}

// FetchProgress is sent again and again for each layer; the last one has Done.
type FetchProgress struct {
	Digest digest.Digest `json:"digest"`
	Bytes  int64         `json:"bytes"`
	Total  int64         `json:"total"`
	Done   bool          `json:"done"`
}

// DetachReply says what was detached.
type DetachReply struct {
	Layers int `json:"layers"`
}

// CacheReply lists what the cache holds.
type CacheReply struct {
	CacheUsage
	Entries []CacheEntry `json:"entries"`
}

// CacheEntry is one layer in the cache.
type CacheEntry struct {
	Digest       digest.Digest `json:"digest"`
	Images       []string      `json:"images"`
	DiskBytes    int64         `json:"disk_bytes"`
	PresentBytes int64         `json:"present_bytes"`
	TotalBytes   int64         `json:"total_bytes"`
	Pinned       bool          `json:"pinned"`    // by snapctl cache pin
	Evictable    bool          `json:"evictable"` // neither pinned nor read by the kernel without asking
}

// PinRequest pins an image's layers in the cache, or no longer.
type PinRequest struct {
	Image string `json:"image"`
	Pin   bool   `json:"pin"`
}

// PinReply says how many layers that were.
type PinReply struct {
	Layers int `json:"layers"`
}

// PruneReply says how much was freed.
type PruneReply struct {
	Bytes int64 `json:"bytes"`
}

// Empty is no message.
type Empty struct{}

// Server is what remorad does.
type Server interface {
	Status(context.Context, *Empty) (*StatusReply, error)
	Login(context.Context, *LoginRequest) (*Empty, error)
	Prime(context.Context, *PrimeRequest) (*PrimeReply, error)
	Resolve(ctx context.Context, req *ResolveRequest, send func(*ResolveReply) error) error
	Fetch(ctx context.Context, req *FetchRequest, send func(*FetchProgress) error) error
	Detach(context.Context, *Empty) (*DetachReply, error)
	Cache(context.Context, *Empty) (*CacheReply, error)
	Pin(context.Context, *PinRequest) (*PinReply, error)
	Prune(context.Context, *Empty) (*PruneReply, error)
	Record(ctx context.Context, req *RecordRequest, send func(*RecordReply) error) error
	Expose(ctx context.Context, req *ExposeRequest, send func(*ExposeReply) error) error
	Recorded(context.Context, *RecordingRequest) (*ProfileReply, error)
	EndRecording(context.Context, *RecordingRequest) (*Empty, error)
	Profile(context.Context, *ProfileRequest) (*ProfileReply, error)
	AddProfile(context.Context, *ProfileRequest) (*ProfileReply, error)
	RemoveProfile(context.Context, *ProfileRequest) (*Empty, error)
	Trace(ctx context.Context, req *Empty, send func(*TraceEvent) error) error
	AttachDisk(context.Context, *AttachDiskRequest) (*Disk, error)
	DetachDisk(context.Context, *DetachDiskRequest) (*DetachDiskReply, error)
	Disks(context.Context, *Empty) (*DisksReply, error)
	VolumeServer
}

const (
	service = "remora.v1.Control"
	codec   = "remora-json"
)

type jsonCodec struct{}

func (jsonCodec) Name() string                       { return codec }
func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

func init() { encoding.RegisterCodec(jsonCodec{}) }

// Register adds the service to a server.
func Register(s *grpc.Server, impl Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*Server)(nil),
		Methods: []grpc.MethodDesc{
			unary("Status", Server.Status), unary("Login", Server.Login),
			unary("Detach", Server.Detach), unary("Cache", Server.Cache), unary("Pin", Server.Pin), unary("Prune", Server.Prune),
			unary("Recorded", Server.Recorded), unary("EndRecording", Server.EndRecording), unary("Profile", Server.Profile), unary("AddProfile", Server.AddProfile),
			unary("AttachDisk", Server.AttachDisk), unary("DetachDisk", Server.DetachDisk), unary("Disks", Server.Disks),
			unary("RemoveProfile", Server.RemoveProfile), unary("Prime", Server.Prime),
			unary("CreateVolume", Server.CreateVolume), unary("Volumes", Server.Volumes), unary("InspectVolume", Server.InspectVolume), unary("AttachedVolumes", Server.AttachedVolumes),
			unary("SetVolumeFS", Server.SetVolumeFS), unary("ResizeVolume", Server.ResizeVolume), unary("RemoveVolume", Server.RemoveVolume),
		},
		Streams: []grpc.StreamDesc{
			streamHandler("Fetch", Server.Fetch), streamHandler("Resolve", Server.Resolve), streamHandler("Record", Server.Record),
			streamHandler("Expose", Server.Expose), streamHandler("Trace", Server.Trace),
			streamHandler("InitStore", Server.InitStore), streamHandler("AttachVolume", Server.AttachVolume),
			streamHandler("DetachVolume", Server.DetachVolume), streamHandler("CheckVolume", Server.CheckVolume), streamHandler("RebuildVolume", Server.RebuildVolume),
		},
	}, impl)
}

func unary[Req, Reply any](name string, call func(Server, context.Context, *Req) (*Reply, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, ic grpc.UnaryServerInterceptor) (any, error) {
		in := new(Req)
		if err := dec(in); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, req any) (any, error) { return call(srv.(Server), ctx, req.(*Req)) }
		if ic == nil {
			return handle(ctx, in)
		}
		return ic(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + service + "/" + name}, handle)
	}}
}

// Client speaks to remorad.
type Client struct {
	Conn grpc.ClientConnInterface
}

func invoke[Req, Reply any](ctx context.Context, c *Client, name string, req *Req) (*Reply, error) {
	out := new(Reply)
	err := c.Conn.Invoke(ctx, "/"+service+"/"+name, req, out, grpc.CallContentSubtype(codec))
	return out, err
}

// Status returns what remorad does now.
func (c *Client) Status(ctx context.Context) (*StatusReply, error) {
	return invoke[Empty, StatusReply](ctx, c, "Status", &Empty{})
}

// Login tells remorad how a registry host is to be reached.
func (c *Client) Login(ctx context.Context, req *LoginRequest) error {
	_, err := invoke[LoginRequest, Empty](ctx, c, "Login", req)
	return err
}

// Resolve returns when all layers of an image are open or have failed, and tells meanwhile how far the
// imports are.
func (c *Client) Resolve(ctx context.Context, req *ResolveRequest, progress func([]FetchProgress)) (*ResolveReply, error) {
	return receiveEnd(ctx, c, "Resolve", req, func(r *ResolveReply) bool { return r.Done }, func(r *ResolveReply) { progress(r.Importing) })
}

// Detach takes all mounts of layers away.
func (c *Client) Detach(ctx context.Context) (*DetachReply, error) {
	return invoke[Empty, DetachReply](ctx, c, "Detach", &Empty{})
}

// Cache lists what the cache holds.
func (c *Client) Cache(ctx context.Context) (*CacheReply, error) {
	return invoke[Empty, CacheReply](ctx, c, "Cache", &Empty{})
}

// Pin pins an image's layers, or no longer.
func (c *Client) Pin(ctx context.Context, req *PinRequest) (*PinReply, error) {
	return invoke[PinRequest, PinReply](ctx, c, "Pin", req)
}

// Prune evicts everything that may be evicted.
func (c *Client) Prune(ctx context.Context) (*PruneReply, error) {
	return invoke[Empty, PruneReply](ctx, c, "Prune", &Empty{})
}
