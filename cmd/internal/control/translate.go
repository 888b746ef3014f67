package control

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// all translates a list. The result is never nil: JSON would have null.
func all[From, To any](list []From, translate func(From) To) []To {
	to := make([]To, 0, len(list))
	for _, m := range list {
		to = append(to, translate(m))
	}
	return to
}

// point translates a message that may be absent.
func point[From, To any](m *From, translate func(*From) To) *To {
	if m == nil {
		return nil
	}
	to := translate(m)
	return &to
}

// timeOf returns the zero time for none.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
