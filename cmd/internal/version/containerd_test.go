package version

import "testing"

func TestMapsMounts(t *testing.T) {
	t.Parallel()
	for containerd, want := range map[string]bool{
		"v2.1.9": false, "2.2.9+unknown": false, "v1.7.28": false, "2.3.0": true, "v2.4.2-k3s1": true, "10.0.1": true, "dev": true, "": true,
	} {
		if got := MapsMounts(containerd); got != want {
			t.Errorf("%q: %v", containerd, got)
		}
	}
}
