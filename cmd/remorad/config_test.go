package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/remora-storage/remora/remote/registry"
)

// TestSampleHasEveryKey: the sample is the defaults, so a key that it lacks has none.
func TestSampleHasEveryKey(t *testing.T) {
	var sample map[string]map[string]any
	if err := toml.Unmarshal(sampleConfig, &sample); err != nil {
		t.Fatal(err)
	}
	sections := reflect.TypeFor[config]()
	for i := range sections.NumField() {
		section := sections.Field(i)
		name := section.Tag.Get("toml")
		for _, field := range reflect.VisibleFields(section.Type) {
			key := field.Tag.Get("toml")
			if key == "" { // embedded
				continue
			}
			if _, ok := sample[name][key]; !ok {
				t.Errorf("[%s] %s is not in the sample", name, key)
			}
		}
	}
	dec := toml.NewDecoder(bytes.NewReader(sampleConfig)).DisallowUnknownFields()
	if err := dec.Decode(new(config)); err != nil {
		t.Errorf("the sample has a key too many: %v", err)
	}
}

func TestReadConfig(t *testing.T) {
	for name, c := range map[string]struct{ text, wantErr string }{
		"empty":                {"", ""},
		"one key":              {"[cache]\nlimit = \"1GiB\"", ""},
		"a key that is none":   {"[cache]\nlimits = 5", "limits"},
		"not TOML":             {"[cache", "configuration"},
		"a wrong back end":     {"[mount]\nbackend = \"magic\"", "want auto"},
		"a wrong diff_id":      {"[trust]\ndiff_id = \"never\"", "before_use"},
		"a wrong shared":       {"[trust]\nshared = \"all\"", "verify or open"},
		"diffIDs of one":       {"[trust.for.\"r.example.com/a\"]\ndiff_id = \"before_use\"", ""},
		"wrong ones of one":    {"[trust.for.\"r.example.com/a\"]\ndiff_id = \"never\"", "r.example.com/a"},
		"a wrong size":         {"[limits]\nextent = \"big\"", "64MiB"},
		"no attempts":          {"[registry]\nattempts = 0", "at least 1"},
		"a wrong policy":       {"[fetch]\nunreachable = \"panic\"", "want wait or eio"},
		"a repository's own":   {"[fetch.for.\"r.example.com/a\"]\nunreachable = \"eio\"", ""},
		"a wrong one":          {"[fetch.for.\"r.example.com/a\"]\nunreachable = \"no\"", "r.example.com/a"},
		"a wrong background":   {"[fetch]\nbackground = \"always\"", "off, idle or on"},
		"a wrong rate":         {"[fetch]\nbackground_rate = \"fast\"", "16MiB"},
		"a back end for one":   {"[mount.for]\n\"r.example.com\" = \"fuse-tree\"", ""},
		"a wrong one for one":  {"[mount.for]\n\"r.example.com\" = \"magic\"", "want auto"},
		"a lease below zero":   {"[volume]\nlease = \"-4s\"", "2| lease = \"-4s\""},
		"a lease too short":    {"[volume]\nlease = \"100ms\"", "a lease of 100ms: want 4s to 1m0s"},
		"a lease too long":     {"[volume]\nlease = \"61s\"", "want 4s to 1m0s"},
		"the shortest lease":   {"[volume]\nlease = \"4s\"", ""},
		"the longest lease":    {"[volume]\nlease = \"60s\"", ""},
		"a duration as number": {"[fetch]\ndeadline = \"5\"", "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readConfig(path, false)
			if c.wantErr == "" && err != nil || c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)) {
				t.Errorf("got %v, want %q", err, c.wantErr)
			}
		})
	}
	missing := filepath.Join(t.TempDir(), "none.toml")
	if _, err := readConfig(missing, true); err != nil {
		t.Errorf("the default file is missing: %v", err)
	}
	if _, err := readConfig(missing, false); err == nil {
		t.Error("a file that was named is missing, and nothing was said")
	}
}

func TestCacheLimit(t *testing.T) {
	for text, ok := range map[string]bool{"50%": true, "1GiB": true, "0": false, "0%": false, "101%": false, "lots": false, "": false} {
		c := new(config)
		c.Cache.Limit = text
		n, err := c.cacheLimit(t.TempDir())
		if (err == nil) != ok || ok && n <= 0 {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}

func TestMostSpecific(t *testing.T) {
	all := map[string]int{"r.example.com": 1, "r.example.com/team": 2, "r.example.com/team/app": 3}
	for repo, want := range map[string]int{"app": 1, "team": 2, "team/other": 2, "team/app": 3, "teams": 1} {
		if got, _ := mostSpecific(all, registry.Repository{Host: "r.example.com", Path: repo}); got != want {
			t.Errorf("%s: got %d, want %d", repo, got, want)
		}
	}
	if _, ok := mostSpecific(all, registry.Repository{Host: "other.example.com", Path: "team"}); ok {
		t.Error("another registry was found")
	}
}
