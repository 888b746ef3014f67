package volumes_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestAlerts: Prometheus accepts docs/alerts.yml, its rules fire when they should and at no other time, and
// remorad has every metric that they ask for.
func TestAlerts(t *testing.T) {
	addr, err := testbed.FreeAddr()
	testbed.Must(t, err)
	s := testbed.New(t, testbed.Options{Bare: true, Config: volumeConfig + "[metrics]\naddress = \"" + addr + "\"\n"})
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "attach", "data")
	defer mustBeRight(t, s, "data", store)
	defer snapctl(t, s, "volume", "detach", "data")

	path := filepath.Join(testbed.Repo(), "docs", "alerts.yml")
	testbed.Tool(t, "promtool", "check", "rules", path)
	rules, err := os.ReadFile(path)
	testbed.Must(t, err)
	tests, err := os.ReadFile("testdata/alerts.test.yml")
	testbed.Must(t, err)
	n := strings.Count(string(rules), "- alert: ")
	filled := filepath.Join(t.TempDir(), "test.yml")
	testbed.Must(t, os.WriteFile(filled, []byte(strings.NewReplacer("ALERTS]", path+"]", "RULES",
		strconv.Itoa(n)).Replace(string(tests))), 0o600))
	testbed.Tool(t, "promtool", "test", "rules", filled)

	resp, err := http.Get("http://" + addr + "/metrics")
	testbed.Must(t, err)
	defer resp.Body.Close()
	served, err := io.ReadAll(resp.Body)
	testbed.Must(t, err)
	for _, name := range regexp.MustCompile(`remora_\w+`).FindAllString(string(rules), -1) {
		if !regexp.MustCompile(`(?m)^` + name + `[{ ]`).Match(served) {
			t.Errorf("no metric %s is served", name)
		}
	}
}
