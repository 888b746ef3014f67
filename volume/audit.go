package volume

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

// What Events tell of.
const (
	EventTakeover = "takeover" // a node took a volume that another one had not given up
	EventAbandon  = "abandon"  // a node gave a volume up with acknowledged writes in its journal alone
	EventLoss     = "loss"     // a volume was attached although flushed writes may be missing
	EventRepair   = "repair"   // a map was made anew
	EventRebuild  = "rebuild"  // a volume was made of what was left of another one
	EventSalvage  = "salvage"  // a volume was made of what a journal has that another one went on without
)

// An Event is something that was done to a volume which somebody may ask about later. It is an object of its own in the
// volume's store, and stays when the volume is removed.
type Event struct {
	Time   time.Time `json:"time"`
	Volume ID        `json:"volume"`
	Name   string    `json:"name"`
	Node   *ID       `json:"node,omitempty"` // that did it, if one did
	What   string    `json:"what"`
	Detail string    `json:"detail"`
	// Of a volume that was taken from another node, or went back to its last commit: the epoch that began, and the last write of
	// those before.
	Epoch uint64 `json:"epoch,omitempty"`
	Write uint64 `json:"write,omitempty"`
}

const eventVersion = 1

func eventPrefix(vid ID) string { return "audit/" + vid.String() + "/" }

// Store keeps an event.
func (e Event) Store(ctx context.Context, st store.Store) error {
	p, err := seal("event", eventVersion, e)
	if err != nil {
		return err
	}
	id := NewID()
	_, err = st.Put(ctx, fmt.Sprintf("%s%016x-%s", eventPrefix(e.Volume), e.Time.UnixMilli(), hex.EncodeToString(id[:4])), p)
	return err
}

// Events returns what was done to a volume, oldest first.
func Events(ctx context.Context, st store.Store, vid ID) (all []Event, err error) {
	var keys []string
	if err := st.List(ctx, eventPrefix(vid), func(o store.Object) bool {
		keys = append(keys, o.Key)
		return true
	}); err != nil {
		return nil, err
	}
	for _, key := range keys {
		p, _, err := st.Get(ctx, key, 0, -1)
		if errors.Is(err, store.ErrNoObject) {
			continue
		}
		var e Event
		if err == nil {
			err = unseal("event", eventVersion, p, &e)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		all = append(all, e)
	}
	return all, nil
}
