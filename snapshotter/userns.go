package snapshotter

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// idMapping returns the options that make containerd idmap a snapshot's lower layers, for a
// container in a user namespace: the layers themselves are shared and nothing is copied.
// containerd sends the labels if the proxy plugin declares the capability "remap-ids".
func idMapping(labels map[string]string) (options []string) {
	if v, ok := labels[snapshots.LabelSnapshotUIDMapping]; ok {
		options = append(options, "uidmap="+v)
	}
	if v, ok := labels[snapshots.LabelSnapshotGIDMapping]; ok {
		options = append(options, "gidmap="+v)
	}
	return options
}

// versionWait bounds how long a container waits for containerd to say what it can.
const versionWait = 5 * time.Second

// mapsLayers insists that containerd can map remote layers, by what can says, if a snapshot with labels needs that. remote is how many
// remote layers are below it.
func mapsLayers(ctx context.Context, labels map[string]string, remote int, can func(context.Context) error) error {
	if can == nil || remote == 0 || len(idMapping(labels)) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionWait)
	defer cancel()
	return can(ctx)
}

// mappedRoot returns the host's ids of a user namespace's root, if a snapshot is for one.
func mappedRoot(labels map[string]string) (uid, gid int, mapped bool, err error) {
	u, hasUID := labels[snapshots.LabelSnapshotUIDMapping]
	g, hasGID := labels[snapshots.LabelSnapshotGIDMapping]
	if !hasUID && !hasGID {
		return 0, 0, false, nil
	}
	if uid, err = hostOfRoot(u); err == nil {
		gid, err = hostOfRoot(g)
	}
	return uid, gid, true, err
}

// hostOfRoot finds what id 0 is on the host in a mapping like 0:100000:65536,65536:300000:10.
func hostOfRoot(mapping string) (int, error) {
	for part := range strings.SplitSeq(mapping, ",") {
		var inside, host, size uint32
		if n, err := fmt.Sscanf(part, "%d:%d:%d", &inside, &host, &size); n != 3 || err != nil {
			return 0, fmt.Errorf("id mapping %.100q: want INSIDE:HOST:SIZE", mapping)
		}
		if inside == 0 && size > 0 {
			return int(host), nil
		}
	}
	return 0, fmt.Errorf("id mapping %.100q has no id for root", mapping)
}
