package formats_test

import (
	"testing"

	"github.com/remora-storage/remora/cmd/internal/formats"
)

// TestNames: each format has a name of its own, which no layer without a format is said to have.
func TestNames(t *testing.T) {
	seen := map[string]bool{"": true, "import": true, "index": true}
	for _, f := range formats.All() {
		if seen[f.Name()] {
			t.Errorf("%T is called %q", f, f.Name())
		}
		seen[f.Name()] = true
	}
}
