package main

import (
	"context"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/remora-storage/remora/snapshotter"
)

// Our events have a type of containerd's, since ctr and other clients skip events of types that are not built into them. The topic tells
// them from containerd's own. It does not contain "/images/": containerd's CRI plugin takes whatever does for a change of its images.
const (
	eventTopic  = "/remora/image/" // and what became of the image
	layerLabel  = "remora.layer"
	reasonLabel = "remora.reason"
)

// tellBy returns snapshotter.Options.Tell that publishes by containerd.
func tellBy(containerd *client.Client) func(context.Context, snapshotter.Event) error {
	return func(ctx context.Context, e snapshotter.Event) error {
		return containerd.EventService().Publish(namespaces.WithNamespace(ctx, e.Namespace), eventTopic+string(e.What), &events.ImageUpdate{
			Name: e.Image, Labels: map[string]string{layerLabel: e.Layer.String(), reasonLabel: e.Reason},
		})
	}
}
