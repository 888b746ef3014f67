package testbed_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestEnv: programs under test see none of the caller's settings for them.
func TestEnv(t *testing.T) {
	for _, name := range []string{
		"CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "REMORA_ADDRESS", "SNAPCTL_PASSWORD", "DOCKER_CONFIG", "XDG_CACHE_HOME",
		"AWS_ACCESS_KEY_ID",
		"HTTPS_PROXY", "https_proxy", "NO_PROXY", "LANG", "PGHOST",
	} {
		t.Setenv(name, "the caller's")
	}
	if i := slices.IndexFunc(testbed.Env(), func(kv string) bool { return strings.HasSuffix(kv, "=the caller's") }); i >= 0 {
		t.Errorf("%s", testbed.Env()[i])
	}
}
