package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/remora-storage/remora/blockdev/disk"
	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
	"github.com/remora-storage/remora/volume/mount"
	"github.com/remora-storage/remora/volume/node"
)

const volumeSource = "volume:" // before an id, in the name of a disk's bytes

// sourceOf names a volume's bytes for disks.
func sourceOf(id volume.ID) string { return volumeSource + id.String() }

// volumes is what remorad does with volumes.
type volumes struct {
	controlv1.UnsafeVolumesServer
	host   *host.Host
	disks  *disk.Disks
	node   *node.Attachments
	byName string // store of names that this node does not know; "" for none
	log    *slog.Logger
}

// volumesDir returns where what this node knows of its volumes lies.
func volumesDir(root string) string { return filepath.Join(root, "volumes") }

// nodeLocks is where this machine's remorads lock the nodes that they serve, whatever their roots and sockets.
const nodeLocks = "/run/remora-nodes"

// openHost opens this node's volumes.
func openHost(root string, cfg *config, keep volume.Cache, log *slog.Logger) (*host.Host, error) {
	memory, err := units.RAMInBytes(cfg.Volume.Memory)
	if err != nil {
		return nil, fmt.Errorf("[volume] memory: %w", err)
	}
	journal, err := units.RAMInBytes(cfg.Volume.Journal)
	if err != nil {
		return nil, fmt.Errorf("[volume] journal: %w", err)
	}
	return host.Open(host.Options{
		Root: volumesDir(root), Locks: nodeLocks, OpenStore: storeOpener(cfg.Volume.Credentials),
		Cache: keep, Memory: memory, Journal: journal, TTL: time.Duration(cfg.Volume.Lease), Log: log,
	})
}

// sourceOpener opens disks' bytes: files, and volumes that an earlier process had attached.
func sourceOpener(h *host.Host) func(context.Context, string, bool) (disk.Device, error) {
	return func(ctx context.Context, source string, readOnly bool) (disk.Device, error) {
		s, ok := strings.CutPrefix(source, volumeSource)
		if !ok {
			return openDiskFile(ctx, source, readOnly)
		}
		id, err := volume.ParseID(s)
		if err != nil {
			return nil, err
		}
		return h.Resume(id, true)
	}
}

// describe says what a head says, and what this node knows beside.
func (v *volumes) describe(url string, h *volume.Head) *controlv1.Volume {
	m := headMessage(url, h, v.host.NodeID())
	v.tellState(m, h.ID)
	if ours := v.host.Head(h.ID); ours != nil && ours.Epoch < h.Epoch && m.GetFailed() == "" { // nobody has used it since
		m.Failed = volume.ErrFenced.Error()
	}
	return m
}

func headMessage(url string, h *volume.Head, self volume.ID) *controlv1.Volume {
	m := &controlv1.Volume{
		Name: h.Name, Id: h.ID.String(), Store: text(url), SizeBytes: h.Size, Class: string(h.Class), Fs: text(h.FS),
		Created: timestamppb.New(h.Created), Epoch: h.Epoch, ReadOnly: h.Mode == volume.ModeReadOnly,
	}
	if h.Owner != nil {
		m.Owner = h.Owner.Node.String()
		m.Here = h.Owner.Node == self
	}
	return m
}

// tellState adds what this node does with a volume.
func (v *volumes) tellState(m *controlv1.Volume, id volume.ID) {
	m.Device, m.Failed = v.device(id)
	if m.Device != "" {
		m.MountPoints = list(mountPoints(m.Device), text)
	}
	st := v.node.StateOf(id)
	m.State = st.Name
	if st.Stuck != nil && m.Failed == "" {
		m.Failed = text(st.Stuck.Error())
	}
}

// mountPoints returns where this mount namespace has a device, for people: one that has just gone has none.
func mountPoints(dev string) []string {
	dirs, err := mount.On(dev)
	if err != nil {
		return nil
	}
	return dirs
}

// device returns a volume's block device on this node, and why it fails if it does.
func (v *volumes) device(id volume.ID) (path, failed string) {
	k := v.disks.Find(sourceOf(id))
	return k.Path, text(k.Reason)
}
