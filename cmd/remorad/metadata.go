package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
)

// usualName is what containerd calls us, where it does not say whom it reaches at our address.
const usualName = "remora"

// noted is what containerd has noted of its snapshots.
type noted struct {
	containerd *client.Client
	address    string // ours
}

// Namespaces implements snapshotter.Metadata.
func (m *noted) Namespaces(ctx context.Context) ([]string, error) {
	return m.containerd.NamespaceService().List(ctx)
}

// Walk implements snapshotter.Metadata.
func (m *noted) Walk(ctx context.Context, fn snapshots.WalkFunc) error {
	names, err := m.names(ctx)
	if err != nil {
		return fmt.Errorf("containerd's plugins: %w", err)
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, m.containerd.SnapshotService(name).Walk(ctx, fn))
	}
	return errors.Join(errs...)
}

// names returns what containerd calls us: an operator chooses that, and may have given us two names.
func (m *noted) names(ctx context.Context) (names []string, err error) {
	reply, err := m.containerd.IntrospectionService().Plugins(ctx, "type=="+string(plugins.SnapshotPlugin))
	if err != nil {
		return nil, err
	}
	for _, p := range reply.Plugins {
		if p.Exports["address"] == m.address {
			names = append(names, p.ID)
		}
	}
	if len(names) == 0 { // it reaches us by another path, as from outside of a pod
		return []string{usualName}, nil
	}
	return names, nil
}
