package testbed

import (
	"fmt"
	"slices"
	"testing"
)

// TestCovering: a sample has each value of each dimension, and is the same for the same seed. It has as many combinations as the
// longest dimension has values, where all exist. Each combination is in some sample.
func TestCovering(t *testing.T) {
	t.Parallel()
	whole := Combinations([]string{"a", "b", "c", "d"}, []string{"1", "2", "3", "4", "5", "6"}, []string{"x", "y"})
	if len(whole) != 48 {
		t.Fatalf("%d combinations", len(whole))
	}
	part := [][]string{{"xfs", "a"}, {"xfs", "b"}, {"tmpfs", "b"}, {"overlayfs", "b"}, {"overlayfs", "c"}}
	for _, c := range []struct {
		all  [][]string
		most int
	}{{whole, 6}, {part, 4}, {nil, 0}} {
		taken := map[string]bool{}
		for seed := range uint64(1000) {
			some := covering(c.all, seed)
			if again := covering(c.all, seed); fmt.Sprint(again) != fmt.Sprint(some) {
				t.Fatalf("seed %d: %v, then %v", seed, some, again)
			}
			if len(some) > c.most {
				t.Fatalf("seed %d: %d combinations: %v", seed, len(some), some)
			}
			for _, one := range c.all {
				for d, v := range one {
					if !slices.ContainsFunc(some, func(s []string) bool { return s[d] == v }) {
						t.Fatalf("seed %d: %v is without %s", seed, some, v)
					}
				}
			}
			for _, one := range some {
				taken[fmt.Sprint(one)] = true
			}
		}
		if len(taken) != len(c.all) {
			t.Errorf("%d of %d combinations are ever taken", len(taken), len(c.all))
		}
	}
}
