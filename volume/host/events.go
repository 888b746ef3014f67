package host

import (
	"context"
	"slices"
	"time"

	"github.com/remora-storage/remora/volume"
)

// pendingEvent is one that its store could not be told of when it happened: giving a volume up to the journal is for when
// the store is out of reach.
type pendingEvent struct {
	Store string `json:"store"`
	volume.Event
}

// note keeps an event until its store has it. The next save of the record has it.
func (h *Host) note(a Attached, what, detail string) {
	h.opts.Log.Warn(what, "volume", a.Name, "detail", detail)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.record.Events = append(h.record.Events, pendingEvent{a.Store, volume.Event{
		Time: time.Now().UTC(), Volume: a.ID, Name: a.Name, Node: &h.id.Node, What: what, Detail: detail,
	}})
}

const tellTimeout = 10 * time.Second

// tellEvents tells stores what they could not be told before. What fails is tried again at the next attach, and daily.
func (h *Host) tellEvents() {
	ctx, stop := context.WithTimeout(context.Background(), tellTimeout)
	defer stop()
	h.mu.Lock()
	all := slices.Clone(h.record.Events)
	h.mu.Unlock()
	for _, e := range all {
		s, err := finder{h}.find(ctx, e.Store)
		if err == nil {
			err = e.Event.Store(ctx, s)
		}
		if err == nil {
			err = h.told(e)
		}
		if err != nil {
			h.opts.Log.Warn("an event is not written down yet", "event", e.What, "volume", e.Name, "err", err)
		}
	}
}

func (h *Host) told(e pendingEvent) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.record.Events = slices.DeleteFunc(h.record.Events, func(x pendingEvent) bool {
		return x.Volume == e.Volume && x.Time.Equal(e.Time)
	})
	return h.saveLocked()
}
