package fetch

import "testing"

// TestShare: the shares of requests fit together where their bytes fit the window, and only there.
func TestShare(t *testing.T) {
	for _, window := range []int64{unknownLink, minFlight, minFlight + 1, 7_654_321, maxFlight} {
		for _, k := range []int64{1, 2, 3, 7, 16} {
			part, last := window/k, window-(k-1)*(window/k)
			sum := (k-1)*shareOf(window, part) + shareOf(window, last)
			if sum > wholeFlight {
				t.Errorf("%d requests that fill a window of %d bytes do not fit", k, window)
			}
			if sum+shareOf(window, 1) <= wholeFlight {
				t.Errorf("a byte more than a window of %d fits beside %d requests", window, k)
			}
		}
		if shareOf(window, 100*window) != wholeFlight {
			t.Errorf("a request larger than the window of %d is not alone", window)
		}
	}
}
