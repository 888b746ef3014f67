package images_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// tlsRegistry starts a registry that speaks TLS over what the stack's own one keeps, and returns its address. With clients, it takes
// only those that the authority knows.
func tlsRegistry(t *testing.T, s *testbed.Stack, a *authority, name string, clients bool) (addr string) {
	t.Helper()
	addr, err := testbed.FreeAddr()
	testbed.Must(t, err)
	a.sign(t, name)
	config := fmt.Sprintf(`version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: %q}
http:
  addr: %q
  tls: {certificate: %q, key: %q`, filepath.Join(s.Dir, "registry"), addr, a.file(name), a.file(name+".key"))
	if clients {
		config += fmt.Sprintf(", clientcas: [%q]", a.file("authority"))
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "registry.yml")
	testbed.Must(t, os.WriteFile(file, []byte(config+"}\n"), 0o600))
	p, err := testbed.Start(filepath.Join(dir, "registry.log"), func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		return err == nil && c.Close() == nil
	}, nil, "docker-registry", "serve", file)
	testbed.Must(t, err)
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	return addr
}

// TestTLS: registries behind TLS of an authority that only hosts.toml names, or nothing does, and those that want a certificate of
// their clients, serve lazily what containerd can pull from them, and nothing where it cannot.
func TestTLS(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	a := newAuthority(t)
	a.sign(t, "client")
	open, closed := tlsRegistry(t, s, a, "open.test", false), tlsRegistry(t, s, a, "closed.test", true)
	ca := fmt.Sprintf("ca = %q\n", a.file("authority"))
	m := &matrix{s: s}
	for i, c := range []struct {
		name, server, toml string
		refused            string // why, in containerd's words; "" if it is served
	}{
		{"ca", open, ca, ""},
		{"no ca", open, "", "certificate signed by unknown authority"},
		{"skip_verify", open, "skip_verify = true\n", ""},
		{"client", closed, ca + fmt.Sprintf("client = [[%q, %q]]\n", a.file("client"), a.file("client.key")), ""},
		{"no client", closed, ca, "bad certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			registry := fmt.Sprintf("tls%d.test", i)
			dir := filepath.Join(s.HostsDir, registry)
			testbed.Must(t, os.MkdirAll(dir, 0o755))
			testbed.Must(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \"https://"+c.server+"\"\n"+c.toml), 0o644))
			for client, kind := range map[string]string{"ctr": "lazy", "snapctl": "import"} {
				if c.refused == "" {
					m.insist(t, registry, client, kind)
					continue
				}
				name, _ := m.newImage(t, "lazy")
				if err := matrixClients[client](t.Context(), s, registry+"/"+name, ""); err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("by %s: %v, want %q", client, err, c.refused)
				}
			}
		})
	}
}
