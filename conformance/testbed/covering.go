package testbed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// seedFrom names the seed of what is drawn by chance, to have that of an earlier run again.
const seedFrom = "REMORA_SEED"

// Combinations returns each value of the first dimension with each of the second, and so on.
func Combinations(dimensions ...[]string) [][]string {
	all := [][]string{nil}
	for _, values := range dimensions {
		var longer [][]string
		for _, c := range all {
			for _, v := range values {
				longer = append(longer, append(c[:len(c):len(c)], v))
			}
		}
		all = longer
	}
	return all
}

// Covering returns a sample of combinations that has each value of each dimension at least once; with make soak, all of them.
// A seed chooses it, and the test's log names the seed.
func Covering(t *testing.T, all [][]string) [][]string {
	t.Helper()
	if os.Getenv("REMORA_SOAK") != "" {
		return all
	}
	seed := Seed(t)
	some := covering(all, seed)
	t.Logf("%d of %d combinations", len(some), len(all))
	return some
}

// Seed returns the seed of what a test draws by chance, and the test's log names it: that of an earlier run if the environment has
// it, else a new one.
func Seed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(seedFrom); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		Must(t, err)
	}
	t.Logf("%s=%d draws the same", seedFrom, seed)
	return seed
}

// covering takes combinations by chance, as long as each brings as many new values as any that is left.
func covering(all [][]string, seed uint64) (some [][]string) {
	type value struct {
		dimension int
		is        string
	}
	seen := map[value]bool{}
	brings := func(c []string) (n int) {
		for d, v := range c {
			if !seen[value{d, v}] {
				n++
			}
		}
		return n
	}
	order := rand.New(rand.NewPCG(seed, 0)).Perm(len(all))
	for {
		best, most := -1, 0
		for _, i := range order {
			if n := brings(all[i]); n > most {
				best, most = i, n
			}
		}
		if best < 0 {
			return some
		}
		some = append(some, all[best])
		for d, v := range all[best] {
			seen[value{d, v}] = true
		}
	}
}
