package main

import (
	"strings"
	"testing"
)

// TestNormalize: an image has the name that containerd's own clients give it, with tag and digest if it was named by both.
func TestNormalize(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0a", 32)
	for ref, want := range map[string]string{
		"redis":                          "docker.io/library/redis:latest",
		"redis:7":                        "docker.io/library/redis:7",
		"team/app":                       "docker.io/team/app:latest",
		"reg.test:5000/app:1":            "reg.test:5000/app:1",
		"localhost:5000/app":             "localhost:5000/app:latest",
		"reg.test/app" + digest:          "reg.test/app" + digest,
		"reg.test:5000/app:1" + digest:   "reg.test:5000/app:1" + digest,
		"redis:7" + digest:               "docker.io/library/redis:7" + digest,
		"reg.test/App:1":                 "",
		"reg.test/app:1@sha256:tooshort": "",
		"":                               "",
	} {
		got, err := normalize(ref)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q is %q, %v; want %q", ref, got, err, want)
		}
	}
}
