package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/snapshotter/layers"
	"github.com/remora-storage/remora/volume"
)

// sampleConfig has every key with its default; config_test.go keeps it so.
//
//go:embed config.toml
var sampleConfig []byte

// config is config.toml.
type config struct {
	Containerd struct {
		Address string `toml:"address"`
	} `toml:"containerd"`
	Registry struct {
		ConfigPath    []string `toml:"config_path"`
		DockerConfig  string   `toml:"docker_config"`
		StallTimeout  duration `toml:"stall_timeout"`
		Attempts      int      `toml:"attempts"`
		PrivatePlaces bool     `toml:"private_places"`
	} `toml:"registry"`
	Cache struct {
		Limit string `toml:"limit"`
	} `toml:"cache"`
	Fetch struct {
		policyConfig
		Background     string                  `toml:"background"`
		BackgroundRate string                  `toml:"background_rate"`
		For            map[string]policyConfig `toml:"for"`
	} `toml:"fetch"`
	Mount struct {
		Backend string            `toml:"backend"`
		For     map[string]string `toml:"for"`
	} `toml:"mount"`
	Images struct {
		Release string `toml:"release"`
	} `toml:"images"`
	Import struct {
		importConfig
		Wait duration                `toml:"wait"`
		For  map[string]importConfig `toml:"for"`
	} `toml:"import"`
	Index struct {
		Publish bool     `toml:"publish"`
		Trust   []string `toml:"trust"`
	} `toml:"index"`
	Profile struct {
		Learn bool `toml:"learn"`
	} `toml:"profile"`
	Trust struct {
		trustConfig
		Unverified []string               `toml:"unverified"`
		For        map[string]trustConfig `toml:"for"`
	} `toml:"trust"`
	Limits struct {
		TOCPacked   string `toml:"toc_packed"`
		TOCPlain    string `toml:"toc_plain"`
		Entries     int    `toml:"entries"`
		Nodes       int    `toml:"nodes"`
		Path        int    `toml:"path"`
		Name        int    `toml:"name"`
		XattrValue  string `toml:"xattr_value"`
		ExtentBytes string `toml:"extent"`
		ImageBytes  string `toml:"image"`
		PlainBytes  string `toml:"plain"`
		Memory      string `toml:"memory"`
	} `toml:"limits"`
	Volume struct {
		Store       string    `toml:"store"`
		Credentials string    `toml:"credentials"`
		Memory      string    `toml:"memory"`
		Journal     string    `toml:"journal"`
		Lease       leaseTime `toml:"lease"`
	} `toml:"volume"`
	Metrics struct {
		Address string `toml:"address"`
	} `toml:"metrics"`
	Pprof struct {
		Address string `toml:"address"`
	} `toml:"pprof"`
}

// policyConfig says what becomes of reads while a registry does not answer. What a section of a
// single registry leaves out is as for all.
type policyConfig struct {
	Unreachable string   `toml:"unreachable"`
	Deadline    duration `toml:"deadline"`
}

// importConfig says how layers are imported. What a section of a single repository leaves out is as for
// all.
type importConfig struct {
	Mode      string `toml:"mode"`
	KeepBlobs *bool  `toml:"keep_blobs"`
}

// trustConfig says what is proven before a layer is used. What a section of a single repository leaves out is as for all.
type trustConfig struct {
	DiffID string `toml:"diff_id"`
	Shared string `toml:"shared"`
}

func (t trustConfig) check(section string) error {
	if t.DiffID != "background" && t.DiffID != "before_use" {
		return fmt.Errorf("%s diff_id = %q: want background or before_use", section, t.DiffID)
	}
	if t.Shared != "verify" && t.Shared != "open" {
		return fmt.Errorf("%s shared = %q: want verify or open", section, t.Shared)
	}
	return nil
}

// or fills what t leaves out.
func (t trustConfig) or(all trustConfig) trustConfig {
	return trustConfig{cmp.Or(t.DiffID, all.DiffID), cmp.Or(t.Shared, all.Shared)}
}

// trustOf returns what holds for a repository.
func (c *config) trustOf(repo registry.Repository) layers.TrustPolicy {
	t, _ := mostSpecific(c.Trust.For, repo)
	t = t.or(c.Trust.trustConfig)
	return layers.TrustPolicy{BeforeUse: t.DiffID == "before_use", Shared: t.Shared == "open"}
}

func (i importConfig) check(section string) error {
	switch layers.ImportMode(i.Mode) {
	case layers.ImportLazy, layers.ImportEager, layers.ImportOrdinary:
		return nil
	}
	return fmt.Errorf("%s mode = %q: want lazy, eager or ordinary", section, i.Mode)
}

// or fills what i leaves out.
func (i importConfig) or(all importConfig) importConfig {
	if i.Mode == "" {
		i.Mode = all.Mode
	}
	if i.KeepBlobs == nil {
		i.KeepBlobs = all.KeepBlobs
	}
	return i
}

// importOf returns what holds for a repository.
func (c *config) importOf(repo registry.Repository) layers.ImportPolicy {
	i, _ := mostSpecific(c.Import.For, repo)
	i = i.or(c.Import.importConfig)
	return layers.ImportPolicy{Mode: layers.ImportMode(i.Mode), KeepBlobs: i.KeepBlobs != nil && *i.KeepBlobs}
}

// keepsBlobs reports whether the blobs of some repository's layers are kept.
func (c *config) keepsBlobs() bool {
	keeps := func(i importConfig) bool { return i.KeepBlobs != nil && *i.KeepBlobs }
	return keeps(c.Import.importConfig) || slices.ContainsFunc(slices.Collect(maps.Values(c.Import.For)), keeps)
}

// indexOf returns what holds for a repository.
func (c *config) indexOf(repo registry.Repository) layers.IndexPolicy {
	trusted := map[string]bool{}
	for _, t := range c.Index.Trust {
		trusted[t] = true
	}
	_, trust := mostSpecific(trusted, repo)
	return layers.IndexPolicy{Trust: trust, Publish: c.Index.Publish}
}

type duration time.Duration

// UnmarshalText reads a duration like 30s.
func (d *duration) UnmarshalText(p []byte) error {
	v, err := time.ParseDuration(string(p))
	*d = duration(v)
	return err
}

// leaseTime is a duration that a lease may have.
type leaseTime time.Duration

// Bounds of leases. A shorter one ends with each hiccup of a store, and others wait as long as a longer one.
const (
	leastLease = 4 * time.Second
	mostLease  = volume.MostTTL
)

// UnmarshalText reads a duration like 12s.
func (l *leaseTime) UnmarshalText(p []byte) error {
	v, err := time.ParseDuration(string(p))
	if err == nil && (v < leastLease || v > mostLease) {
		err = fmt.Errorf("a lease of %s: want %s to %s", p, leastLease, mostLease)
	}
	*l = leaseTime(v)
	return err
}

// readConfig reads a file over the defaults. The default file need not exist.
func readConfig(path string, mayBeMissing bool) (*config, error) {
	c := new(config)
	if err := toml.Unmarshal(sampleConfig, c); err != nil {
		return nil, fmt.Errorf("built-in configuration: %w", err)
	}
	p, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && mayBeMissing {
		return c, c.check()
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	dec := toml.NewDecoder(bytes.NewReader(p)).DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, fmt.Errorf("configuration %s has keys that remorad does not know:\n%s", path, strict.String())
		}
		var wrong *toml.DecodeError
		if errors.As(err, &wrong) {
			return nil, fmt.Errorf("configuration %s: %w\n%s", path, err, wrong.String())
		}
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func (c *config) check() error {
	if err := checkBackend("[mount] backend", c.Mount.Backend); err != nil {
		return err
	}
	for where, backend := range c.Mount.For {
		if err := checkBackend(fmt.Sprintf("[mount.for] %q", where), backend); err != nil {
			return err
		}
	}
	if err := c.Fetch.check("[fetch]"); err != nil {
		return err
	}
	for where, p := range c.Fetch.For {
		if err := p.or(c.Fetch.policyConfig).check(fmt.Sprintf("[fetch.for.%q]", where)); err != nil {
			return err
		}
	}
	if r := c.Images.Release; r != releaseAuto && r != releaseAsk {
		return fmt.Errorf("[images] release = %q: want %s or %s", r, releaseAuto, releaseAsk)
	}
	if err := c.Import.check("[import]"); err != nil {
		return err
	}
	for where, i := range c.Import.For {
		if err := i.or(c.Import.importConfig).check(fmt.Sprintf("[import.for.%q]", where)); err != nil {
			return err
		}
	}
	if c.Import.Wait <= 0 || time.Duration(c.Import.Wait) > time.Second {
		return fmt.Errorf("[import] wait = %q: want more than nothing, and no more than 1s: containerd holds a lock meanwhile",
			time.Duration(c.Import.Wait))
	}
	switch snapshotter.Background(c.Fetch.Background) {
	case snapshotter.BackgroundOff, snapshotter.BackgroundIdle, snapshotter.BackgroundOn:
	default:
		return fmt.Errorf("[fetch] background = %q: want off, idle or on", c.Fetch.Background)
	}
	if _, err := c.backgroundRate(); err != nil {
		return err
	}
	if err := c.Trust.check("[trust]"); err != nil {
		return err
	}
	for where, t := range c.Trust.For {
		if err := t.or(c.Trust.trustConfig).check(fmt.Sprintf("[trust.for.%q]", where)); err != nil {
			return err
		}
	}
	if c.Registry.Attempts < 1 {
		return fmt.Errorf("[registry] attempts = %d: want at least 1", c.Registry.Attempts)
	}
	if _, err := c.memory(); err != nil {
		return err
	}
	_, err := c.limits()
	return err
}

func checkBackend(key, v string) error {
	if v == "auto" || slices.Contains(blockdev.Backends, blockdev.Backend(v)) {
		return nil
	}
	return fmt.Errorf("%s = %q: want auto or one of %v", key, v, blockdev.Backends)
}

// or fills what p leaves out.
func (p policyConfig) or(all policyConfig) policyConfig {
	if p.Unreachable == "" {
		p.Unreachable = all.Unreachable
	}
	if p.Deadline == 0 {
		p.Deadline = all.Deadline
	}
	return p
}

func (p policyConfig) check(section string) error {
	if p.Unreachable != "wait" && p.Unreachable != "eio" {
		return fmt.Errorf("%s unreachable = %q: want wait or eio", section, p.Unreachable)
	}
	if p.Deadline <= 0 {
		return fmt.Errorf("%s deadline: want more than nothing", section)
	}
	return nil
}

func (p policyConfig) policy() cache.Policy {
	return cache.Policy{Wait: p.Unreachable == "wait", Deadline: time.Duration(p.Deadline)}
}

// policyOf returns what holds for a repository.
func (c *config) policyOf(repo registry.Repository) cache.Policy {
	p, _ := mostSpecific(c.Fetch.For, repo)
	return p.or(c.Fetch.policyConfig).policy()
}

func backendOf(v string) blockdev.Backend {
	if v == "auto" {
		return ""
	}
	return blockdev.Backend(v)
}

func (c *config) backend() blockdev.Backend { return backendOf(c.Mount.Backend) }

// backendFor returns the back end that is pinned for a repository, or "".
func (c *config) backendFor(repo registry.Repository) blockdev.Backend {
	v, ok := mostSpecific(c.Mount.For, repo)
	if !ok {
		return ""
	}
	return backendOf(v)
}

// mostSpecific finds a repository among keys that are a registry's host, or that and the beginning
// of a path.
func mostSpecific[T any](all map[string]T, repo registry.Repository) (v T, ok bool) {
	for name := repo.String(); ; name = path.Dir(name) {
		if v, ok = all[name]; ok || name == "." || name == "/" {
			return v, ok
		}
	}
}

func (c *config) backgroundRate() (int64, error) {
	n, err := units.RAMInBytes(c.Fetch.BackgroundRate)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("[fetch] background_rate = %q: want bytes a second like 16MiB, or 0 for no bound", c.Fetch.BackgroundRate)
	}
	return n, nil
}

func (c *config) trust() layers.Trust {
	return layers.Trust{Unverified: c.Trust.Unverified}
}

func (c *config) limits() (layout.Limits, error) {
	l := layout.Limits{Entries: c.Limits.Entries, Nodes: c.Limits.Nodes, Path: c.Limits.Path, Name: c.Limits.Name}
	var xattr int64
	for key, v := range map[string]struct {
		text string
		to   *int64
	}{
		"toc_packed": {c.Limits.TOCPacked, &l.PackedIndex}, "toc_plain": {c.Limits.TOCPlain, &l.PlainIndex},
		"xattr_value": {c.Limits.XattrValue, &xattr}, "extent": {c.Limits.ExtentBytes, &l.Extent},
		"image": {c.Limits.ImageBytes, &l.Image}, "plain": {c.Limits.PlainBytes, &l.Plain},
	} {
		n, err := units.RAMInBytes(v.text)
		if err != nil || n <= 0 {
			return l, fmt.Errorf("[limits] %s = %q: want a size like 64MiB", key, v.text)
		}
		*v.to = n
	}
	l.XattrValue = int(xattr)
	return l, nil
}

// cacheLimit returns the budget in bytes: a size, or a share of the file system that root is on.
func (c *config) cacheLimit(root string) (int64, error) {
	text := strings.TrimSpace(c.Cache.Limit)
	if share, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(strings.TrimSpace(share), 64)
		if err != nil || percent <= 0 || percent > 100 {
			return 0, fmt.Errorf("[cache] limit = %q: want a share like 50%%", c.Cache.Limit)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil {
			return 0, fmt.Errorf("size of the file system of %s: %w", root, err)
		}
		return int64(float64(st.Blocks) * float64(st.Bsize) * percent / 100), nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("[cache] limit = %q: want a size like 20GiB or a share like 50%%", c.Cache.Limit)
	}
	return n, nil
}
