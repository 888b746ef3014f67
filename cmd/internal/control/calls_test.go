package control

import (
	"context"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// nothing is the answer of a call that has none.
type nothing struct{}

// plain is a call with one answer.
func plain[Request, Reply any](do func(*Client, context.Context, *Request) (*Reply, error)) call {
	req := new(Request)
	return call{request: req, do: func(ctx context.Context, c *Client, _ func(any)) (any, error) { return do(c, ctx, req) }}
}

// asked is a call without a request.
func asked[Reply any](do func(*Client, context.Context) (*Reply, error)) call {
	return call{do: func(ctx context.Context, c *Client, _ func(any)) (any, error) { return do(c, ctx) }}
}

// order is a call without an answer.
func order[Request any](do func(*Client, context.Context, *Request) error) call {
	req := new(Request)
	return call{request: req, do: func(ctx context.Context, c *Client, _ func(any)) (any, error) { return nothing{}, do(c, ctx, req) }}
}

// lasting is a call that is answered for as long as it lasts.
func lasting[Request, Message any](do func(*Client, context.Context, *Request, func(*Message)) error) call {
	req := new(Request)
	return call{request: req, do: func(ctx context.Context, c *Client, _ func(any)) (reply any, err error) {
		err = do(c, ctx, req, func(m *Message) { reply = m })
		return reply, err
	}}
}

// stepwise is a call that tells its steps in a field.
func stepwise[Request, Reply any](field string, do func(*Client, context.Context, *Request, func(string)) (*Reply, error)) call {
	req := new(Request)
	return call{request: req, tells: []protoreflect.Name{protoreflect.Name(field)},
		do: func(ctx context.Context, c *Client, told func(any)) (any, error) {
			return do(c, ctx, req, func(step string) { told(map[string]string{field: step}) })
		}}
}

func nodeCalls() map[protoreflect.FullName]call {
	return map[protoreflect.FullName]call{
		"Node.Status":      asked((*Client).Status),
		"Node.Detach":      asked((*Client).Detach),
		"Node.ListCache":   asked((*Client).Cache),
		"Node.Pin":         plain((*Client).Pin),
		"Node.Repair":      lasting((*Client).Repair),
		"Node.Prune":       asked((*Client).Prune),
		"Disks.AttachDisk": plain((*Client).AttachDisk),
		"Disks.DetachDisk": plain((*Client).DetachDisk),
		"Disks.ListDisks":  asked((*Client).Disks),
	}
}

func imageCalls() map[protoreflect.FullName]call {
	resolve, manifest := new(ResolveRequest), &ProfileRequest{Manifest: "sha256:1"}
	return map[protoreflect.FullName]call{
		"Images.Login": order((*Client).Login),
		"Images.Prime": plain((*Client).Prime),
		"Images.Resolve": {request: resolve, tells: []protoreflect.Name{"importing"},
			do: func(ctx context.Context, c *Client, told func(any)) (any, error) {
				reply, err := c.Resolve(ctx, resolve, func(p []FetchProgress) { told(map[string]any{"importing": p}) })
				return struct {
					*ResolveReply
					Done bool `json:"done"`
				}{reply, true}, err
			}},
		"Images.Fetch":        lasting((*Client).Fetch),
		"Images.Expose":       lasting((*Client).Expose),
		"Images.Record":       lasting((*Client).Record),
		"Images.GetRecording": plain((*Client).Recorded),
		"Images.EndRecording": order((*Client).EndRecording),
		"Images.GetProfile": {request: manifest, fixed: true, do: func(ctx context.Context, c *Client, _ func(any)) (any, error) {
			return c.Profile(ctx, manifest)
		}},
		"Images.AddProfile": plain((*Client).AddProfile),
		"Images.RemoveProfile": {request: manifest, fixed: true, do: func(ctx context.Context, c *Client, _ func(any)) (any, error) {
			return nothing{}, c.RemoveProfile(ctx, manifest)
		}},
		"Images.Trace": {do: func(ctx context.Context, c *Client, _ func(any)) (reply any, err error) {
			err = c.Trace(ctx, func(e *TraceEvent) { reply = e })
			return reply, err
		}},
	}
}

func volumeCalls() map[protoreflect.FullName]call {
	detach, check, rebuild := new(DetachVolumeRequest), new(CheckVolumeRequest), new(RebuildVolumeRequest)
	salvage := new(SalvageJournalRequest)
	unmount := new(UnmountVolumeRequest)
	step := func(told func(any)) func(string) { return func(s string) { told(map[string]string{"step": s}) } }
	return map[protoreflect.FullName]call{
		"Volumes.InitStore":           stepwise("step", (*Client).InitStore),
		"Volumes.CreateVolume":        plain((*Client).CreateVolume),
		"Volumes.ListVolumes":         plain((*Client).Volumes),
		"Volumes.ListAttachedVolumes": asked((*Client).AttachedVolumes),
		"Volumes.InspectVolume":       plain((*Client).InspectVolume),
		"Volumes.AttachVolume":        stepwise("waits", (*Client).AttachVolume),
		"Volumes.DetachVolume": {request: detach, tells: []protoreflect.Name{"at_risk_bytes", "reason"},
			do: func(ctx context.Context, c *Client, told func(any)) (any, error) {
				return c.DetachVolume(ctx, detach, func(r *DetachVolumeReply) { told(r) })
			}},
		"Volumes.MountVolume": stepwise("step", (*Client).MountVolume),
		"Volumes.UnmountVolume": {request: unmount, tells: []protoreflect.Name{"unmounted", "at_risk_bytes", "reason"},
			do: func(ctx context.Context, c *Client, told func(any)) (any, error) {
				return c.UnmountVolume(ctx, unmount, func(r *UnmountVolumeReply) { told(r) })
			}},
		"Volumes.ResizeVolume": plain((*Client).ResizeVolume),
		"Volumes.RemoveVolume": plain((*Client).RemoveVolume),
		"Volumes.CheckVolume": {request: check, tells: []protoreflect.Name{"step"},
			do: func(ctx context.Context, c *Client, told func(any)) (any, error) {
				report, err := c.CheckVolume(ctx, check, step(told))
				return map[string]any{"report": report}, err
			}},
		"Volumes.RebuildVolume": {request: rebuild, tells: []protoreflect.Name{"step"},
			do: func(ctx context.Context, c *Client, told func(any)) (any, error) {
				rebuilt, err := c.RebuildVolume(ctx, rebuild, step(told))
				return map[string]any{"rebuilt": rebuilt}, err
			}},
		"Volumes.ListJournals": asked((*Client).Journals),
		"Volumes.SalvageJournal": {request: salvage, tells: []protoreflect.Name{"step"},
			do: func(ctx context.Context, c *Client, told func(any)) (any, error) {
				salvaged, err := c.SalvageJournal(ctx, salvage, step(told))
				return map[string]any{"salvaged": salvaged}, err
			}},
		"Volumes.RemoveJournal": plain((*Client).RemoveJournal),
	}
}
