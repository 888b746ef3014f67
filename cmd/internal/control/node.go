package control

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// StatusReply is what `snapctl status --json` prints. Sizes are in bytes.
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
	Damaged  []Damaged  `json:"damaged"`
}

// Damaged is a file of remorad's that could not be read and was set aside, until somebody removes it.
type Damaged struct {
	File   string    `json:"file"`
	Aside  string    `json:"aside"`
	Found  time.Time `json:"found"`
	Lost   string    `json:"lost"`
	Advice string    `json:"advice"`
}

// Holder is the process that keeps mounts alive while remorad is not there. PID is 0 if there is none.
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

// Registry is what snapctl needs to reach registries as remorad does.
type Registry struct {
	ConfigPath   []string `json:"config_path,omitempty"`
	DockerConfig string   `json:"docker_config,omitempty"`
	// PrivatePlaces lets public registries lead to addresses that are not public.
	PrivatePlaces bool `json:"private_places,omitempty"`
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

// Broken is an active snapshot whose processes may get EIO, or one that was lost.
type Broken struct {
	Container string `json:"container,omitempty"` // namespace/name
	Snapshot  string `json:"snapshot"`
	Mounted   string `json:"mounted"`
	Reason    string `json:"reason"`
}

// DetachReply says how many layers were detached.
type DetachReply struct {
	Layers int `json:"layers"`
}

// Status returns what remorad does now.
func (c *Client) Status(ctx context.Context) (*StatusReply, error) {
	m, err := c.node.Status(ctx, &controlv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	return &StatusReply{
		Version: m.GetVersion(), Root: m.GetRoot(),
		Backend: Backend{
			Name: m.GetBackend().GetName(), Reason: m.GetBackend().GetReason(),
			Direct: m.GetBackend().GetDirect(), DirectReason: m.GetBackend().GetDirectReason(),
			IDMap: m.GetBackend().GetIdmap(), IDMapReason: m.GetBackend().GetIdmapReason(),
		},
		Cache: usageOf(m.GetCache()), Registry: registryOf(m.GetRegistry()),
		Layers: all(m.GetLayers(), layerOf), Broken: all(m.GetBroken(), brokenOf), Waiting: all(m.GetWaiting(), waitingOf),
		Holder: Holder{PID: int(m.GetHolder().GetPid())}, Damaged: all(m.GetDamaged(), damagedOf),
	}, nil
}

func registryOf(m *controlv1.Registry) Registry {
	return Registry{ConfigPath: m.GetConfigPath(), DockerConfig: m.GetDockerConfig(), PrivatePlaces: m.GetPrivatePlaces()}
}

func damagedOf(m *controlv1.DamagedFile) Damaged {
	return Damaged{
		File: m.GetFile(), Aside: m.GetAside(), Found: m.GetFound().AsTime(), Lost: m.GetLost(), Advice: m.GetAdvice(),
	}
}

func layerOf(m *controlv1.Layer) Layer {
	return Layer{
		Digest: digest.Digest(m.GetDigest()), Image: m.GetImage(), Snapshot: m.GetSnapshot(), Format: m.GetFormat(),
		Backend: m.GetBackend(), State: m.GetState(), Reason: m.GetReason(), Verified: m.GetVerified(),
		PresentBytes: m.GetPresentBytes(), TotalBytes: m.GetTotalBytes(), FetchedBytes: m.GetFetchedBytes(),
		ReadBytes: m.GetReadBytes(), PrefetchedBytes: m.GetPrefetchedBytes(), PrefetchUsedBytes: m.GetPrefetchUsedBytes(),
		DemandBytes: m.GetDemandBytes(), Waits: m.GetWaits(), WaitSeconds: m.GetWaited().AsDuration().Seconds(), DiskBytes: m.GetDiskBytes(),
	}
}

func brokenOf(m *controlv1.Broken) Broken {
	return Broken{Container: m.GetContainer(), Snapshot: m.GetSnapshot(), Mounted: m.GetMounted(), Reason: m.GetReason()}
}

func waitingOf(m *controlv1.Waiting) Waiting {
	return Waiting{
		PID: int(m.GetPid()), Command: m.GetCommand(), Container: m.GetContainer(), Image: m.GetImage(),
		Digest: digest.Digest(m.GetDigest()), Seconds: m.GetWaited().AsDuration().Seconds(), Reason: m.GetReason(),
	}
}

// Detach takes all mounts of layers away.
func (c *Client) Detach(ctx context.Context) (*DetachReply, error) {
	m, err := c.node.Detach(ctx, &controlv1.DetachRequest{})
	return &DetachReply{Layers: int(m.GetLayers())}, err
}
