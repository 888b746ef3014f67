package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/cmdtest"
	"github.com/remora-storage/remora/cmd/internal/version"
)

// remorad runs the program until it ends by itself.
func remorad(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out cmdtest.Output
	err := run(t.Context(), append([]string{}, args...), &out, &out)
	return out.String(), err
}

// TestPrints what people copy.
func TestPrints(t *testing.T) {
	sample, err := remorad(t, "sample-config")
	if err != nil || sample != string(sampleConfig) {
		t.Errorf("sample-config: %d bytes, %v", len(sample), err)
	}
	snippet, err := remorad(t, "containerd-config", "--root", filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		ProxyPlugins map[string]struct {
			Type, Address string
			Capabilities  []string
			Exports       map[string]string
		} `toml:"proxy_plugins"`
	}
	if err := toml.NewDecoder(bytes.NewReader([]byte(snippet))).Decode(&parsed); err != nil {
		t.Fatal(err)
	}
	p := parsed.ProxyPlugins["remora"]
	if p.Type != "snapshot" || p.Address != defaultSocket || len(p.Capabilities) != 1 ||
		p.Exports["enable_remote_snapshot_annotations"] != "true" {
		t.Errorf("containerd-config: %+v of\n%s", p, snippet)
	}
	if out, err := remorad(t, "--version"); err != nil || !strings.Contains(out, version.String()) {
		t.Errorf("--version: %q, %v", out, err)
	}
	for _, args := range [][]string{{"--help"}, {"holder", "--help"}, {"sample-config", "--help"}} {
		if out, err := remorad(t, args...); err != nil || !strings.Contains(out, "Usage:") {
			t.Errorf("%q: %q, %v", args, out, err)
		}
	}
}

// TestUsage tells mistakes in the call from failures.
func TestUsage(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("[cache]\nlimits = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good.toml")
	if err := os.WriteFile(good, []byte("[registry]\ndocker_config = \"\"\nconfig_path = []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a flag that is none":  {[]string{"--fast"}, 2, "--fast"},
		"a wrong level":        {[]string{"--log-level", "loud"}, 2, `--log-level "loud"`},
		"of the holder":        {[]string{"holder", "--log-level", "loud"}, 2, `--log-level "loud"`},
		"no configuration":     {[]string{"--config", filepath.Join(dir, "none")}, 1, "none"},
		"a wrong one":          {[]string{"--config", bad}, 1, "limits"},
		"a wrong holder":       {[]string{"--config", good, "--root", root, "--holder", "me"}, 2, `--holder "me": want auto, external or none`},
		"a root that is none":  {[]string{"--config", good, "--root", bad}, 1, bad},
		"a holder's root":      {[]string{"holder", "--root", filepath.Join(bad, "x")}, 1, bad},
		"an argument too many": {[]string{"sample-config", "x"}, 2, "x"},
		"no such command":      {[]string{"holdr"}, 2, `unknown command "holdr" for "remorad": did you mean holder?`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := remorad(t, c.args...)
			fails(t, err, c.want)
			if got := cli.Code(err); got != c.code {
				t.Errorf("exit code %d, want %d: %v", got, c.code, err)
			}
		})
	}
}
