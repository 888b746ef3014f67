package snapshotter

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// What became of images without anybody's asking is told as events, to whoever wants to act on it.

// An Event is what became of an image of containerd.
type Event struct {
	What             EventKind
	Namespace, Image string
	Layer            digest.Digest // that the image has
	Reason           string
}

// EventKind says what became of an image.
type EventKind string

// The kinds.
const (
	// EventBroken says that a layer cannot be used: it is nowhere any more, or is not what its image says; and again if its images could
	// not be released, with the reason.
	EventBroken EventKind = "broken"
	// EventMended says that one can be used again, or comes from another place than its own.
	EventMended EventKind = "mended"
	// EventReleased says that the image was removed from containerd, since a layer of it is nowhere any more.
	EventReleased EventKind = "released"
)

const (
	eventsWaiting = 256 // more are dropped
	eventTakes    = 10 * time.Second
)

// telling tells of events, one after the other, and never has whoever notes one wait.
type telling struct {
	*base
	waiting chan Event
}

// image tells of the image that a layer is of.
func (t *telling) image(what EventKind, src *layers.Source, reason string) {
	t.note(Event{what, src.Namespace, src.Image, src.Descriptor.Digest, reason})
}

// note tells of an event, unless nobody listens or knows of which image it is.
func (t *telling) note(e Event) {
	if t.opts.Tell == nil || e.Namespace == "" || e.Image == "" {
		return
	}
	select {
	case t.waiting <- e:
	default:
		t.log.Warn("too many events wait: one is not told", "event", e.What, "image", e.Image, "namespace", e.Namespace)
	}
}

// run tells of what is noted until ctx ends.
func (t *telling) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-t.waiting:
			ctx, cancel := context.WithTimeout(ctx, eventTakes)
			if err := t.opts.Tell(ctx, e); err != nil {
				t.log.Warn("an event is not told", "event", e.What, "image", e.Image, "namespace", e.Namespace, "err", err)
			}
			cancel()
		}
	}
}
