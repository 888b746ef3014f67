package host

import (
	"context"
	"log/slog"

	"github.com/remora-storage/remora/volume"
)

// spareMaker keeps a journal ready for the next volume on a node that has volumes.
type spareMaker struct {
	journals *volume.JournalDir
	wanted   chan struct{} // has room for one
	log      *slog.Logger
}

func newSpareMaker(journals *volume.JournalDir, log *slog.Logger) spareMaker {
	return spareMaker{journals, make(chan struct{}, 1), log}
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
		if err := s.journals.MakeSpare(ctx, false); err != nil && ctx.Err() == nil {
			s.log.Warn("no journal is kept ready for the next volume", "err", err)
		}
	}
}
