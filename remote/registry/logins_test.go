package registry_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/registry"
)

// TestDamagedLogins: a damaged file of logins is set aside, and logins are kept again from then on. What it says of passwords
// is in no log.
func TestDamagedLogins(t *testing.T) {
	const seed = 20261129
	for _, h := range suite.Harms(seed) {
		t.Run(h.Name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), registry.LoginsFile.Name)
			var said bytes.Buffer
			open := func() *registry.Logins {
				l, err := registry.OpenLogins(path, slog.New(slog.NewTextHandler(&said, nil)))
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				return l
			}
			login := registry.Login{User: "u", Secret: "very secret"}
			if _, err := open().Set("reg.test", login); err != nil {
				t.Fatal(err)
			}
			h.Do(t, path)
			was := suite.Kind(t, path)
			l := open()
			suite.MustLieAside(t, path, was)
			if !strings.Contains(said.String(), path) || strings.Contains(said.String(), "very secret") {
				t.Errorf("the log says %s", said.String())
			}
			if hosts := l.Hosts(); len(hosts) != 0 {
				t.Errorf("hosts: %q", hosts)
			}
			if _, err := l.Set("reg.test", login); err != nil {
				t.Fatal(err)
			}
			if got := open().Get("reg.test"); got != login {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestLoginsOfEarlierVersion: logins that the version of commit 9966ce9 wrote down count.
func TestLoginsOfEarlierVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), registry.LoginsFile.Name)
	const file = "{\n  \"reg.test:5000\": {\n    \"user\": \"me\",\n    \"secret\": \"secret\",\n    \"plain_http\": true\n  }\n}"
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := registry.OpenLogins(path, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Get("reg.test:5000"); got != (registry.Login{User: "me", Secret: "secret", PlainHTTP: true}) {
		t.Errorf("got %+v", got)
	}
}
