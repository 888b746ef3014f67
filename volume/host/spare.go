package host

import (
	"context"
	"log/slog"

	"github.com/remora-storage/remora/volume"
)

// spareMaker keeps a journal ready for the next volume on a node that has volumes, and tidies the journals of those before.
type spareMaker struct {
	journals *volume.JournalDir
	tidy     func(context.Context)
	wanted   chan struct{} // has room for one
	log      *slog.Logger
}

func newSpareMaker(h *Host) spareMaker {
	return spareMaker{h.journals, newTidier(h).tidy, make(chan struct{}, 1), h.opts.Log}
}

// want asks for a journal to be ready, or for one to go that the disk has no room for by now.
func (s spareMaker) want() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

func (s spareMaker) run(ctx context.Context) {
	for {
		select {
		case <-s.wanted:
		case <-ctx.Done():
			return
		}
		s.tidy(ctx)
		if err := s.journals.MakeSpare(ctx, false); err != nil && ctx.Err() == nil {
			s.log.Warn("no journal is kept ready for the next volume", "err", err)
		}
	}
}
