package images_test

import (
	"slices"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestMeasuredNeighbours: images start beside hostile ones that are pulled, of each front end, in at most 1.3 times what they take beside
// as many small honest ones: by medians of rounds in turn, of which there are more while other work on the machine may be why.
func TestMeasuredNeighbours(t *testing.T) {
	const most, starts = 1.3, 5
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	n := testbed.Neighbourhood{Stack: s, Work: t.TempDir(), HonestBytes: int64(testbed.Rounds(1<<20, 4<<20))}
	crowd, atLeast, atMost := testbed.Rounds(24, 200), testbed.Rounds(2, 3), testbed.Rounds(6, 9)
	median := func(all []time.Duration) float64 { return slices.Sorted(slices.Values(all))[len(all)/2].Seconds() }
	var honest, hostile []time.Duration
	ratio := 0.0
	for round := 1; round <= atMost && (round <= atLeast || ratio > most); round++ {
		beside := func(layer func(int) testbed.Blob, all *[]time.Duration) {
			times, err := n.Beside(t.Context(), crowd, starts, layer)
			testbed.Must(t, err)
			*all = append(*all, times...)
		}
		if round%2 == 1 {
			beside(testbed.SmallBlob, &honest)
			beside(testbed.HostileBlob, &hostile)
		} else {
			beside(testbed.HostileBlob, &hostile)
			beside(testbed.SmallBlob, &honest)
		}
		ratio = median(hostile) / median(honest)
		t.Logf("round %d: median of %d starts beside hostile images %.2f s, beside small ones %.2f s, ratio %.2f",
			round, len(hostile), median(hostile), median(honest), ratio)
	}
	if ratio > most {
		t.Errorf("starts beside hostile images take %.2f of what they take beside small honest ones", ratio)
	}
	refused := countLog(t, s, "layer takes the ordinary path") // what hostile layers come to
	if t.Logf("%d layers took the ordinary path", refused); refused == 0 {
		t.Error("no layer was refused")
	}
}
