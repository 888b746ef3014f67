package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestCredentialHelpers are found in Docker's configuration, if they are installed.
func TestCredentialHelpers(t *testing.T) {
	dir := t.TempDir()
	installed := filepath.Join(dir, "docker-credential-here")
	for path, text := range map[string]string{
		installed:                          "#!/bin/sh\n",
		filepath.Join(dir, "config.json"):  `{"credsStore": "here", "credHelpers": {"r.example.com": "here", "s.example.com": "gone"}}`,
		filepath.Join(dir, "none.json"):    `{}`,
		filepath.Join(dir, "damaged.json"): `{`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	for config, want := range map[string][]string{
		dir: {installed, installed}, filepath.Join(dir, "config.json"): {installed, installed},
		filepath.Join(dir, "none.json"): nil, filepath.Join(dir, "damaged.json"): nil, filepath.Join(dir, "missing.json"): nil,
	} {
		if got := credentialHelpers(config); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", filepath.Base(config), got, want)
		}
	}
	cfg := new(config)
	cfg.Registry.DockerConfig = filepath.Join(dir, "config.json")
	cfg.Registry.ConfigPath = []string{dir, filepath.Join(dir, "missing")}
	if err := needsNothingLazy(cfg); err != nil {
		t.Errorf("nothing here is lazy: %v", err)
	}
	// What cannot be looked at is an error: a file that is taken for a directory.
	cfg.Registry.ConfigPath = []string{filepath.Join(installed, "below")}
	fails(t, needsNothingLazy(cfg), "look where", "below")
}

// TestOverLazy: an ordinary file has no image below.
func TestOverLazy(t *testing.T) {
	if lazy, err := overLazy(t.TempDir()); err != nil || lazy {
		t.Errorf("%v, %v", lazy, err)
	}
}

// TestWithin compares whole names.
func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a/b", "/a", true}, {"/a", "/a", true}, {"/ab", "/a", false}, {"/a", "/", true}, {"/a", "/a/b", false}} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("%s within %s: %v", c.path, c.dir, got)
		}
	}
}
