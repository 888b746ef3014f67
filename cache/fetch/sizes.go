package fetch

import (
	"time"

	"github.com/remora-storage/remora/cache/image"
)

// A Measured source knows the way to where its bytes are: how long an answer takes to begin, and
// bytes a second over all connections together. 0 is not known.
type Measured interface {
	Link() (latency time.Duration, rate int64)
}

// sizes fit requests that nobody waits for to the way to a source.
type sizes struct {
	flight int64 // packed bytes of all such requests together that may be under way
	gap    int64 // packed bytes that are read and dropped rather than paid for with another request
}

const (
	// unknownLink is latency × rate where neither was measured.
	unknownLink = 1 << 20
	minFlight   = 2 << 20
	maxFlight   = 32 << 20
	minGap      = 16 << 10
	maxGap      = 512 << 10
)

// sizesOf sizes requests by latency × rate, which is what the way holds. Four times that under way
// keep it four fifths full, since each connection is idle for a round trip between two requests; and
// a reader that comes behind them all waits for no more than four round trips. A gap costs its bytes,
// a request its share of a round trip.
func sizesOf(src Source) sizes {
	holds := int64(unknownLink)
	if m, ok := src.(Measured); ok {
		if latency, rate := m.Link(); latency > 0 && rate > 0 {
			holds = int64(latency.Seconds() * float64(rate))
		}
	}
	return sizes{flight: min(max(4*holds, minFlight), maxFlight), gap: min(max(holds/8, minGap), maxGap)}
}

// gapBetween returns the packed bytes between two units, the first of which lies before.
func gapBetween(t *image.Table, a, b uint32) int64 {
	u := t.Unit(a)
	return t.Unit(b).Off - u.Off - u.Len
}
