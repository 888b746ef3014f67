package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/snapshotter"
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
		ConfigPath   []string `toml:"config_path"`
		DockerConfig string   `toml:"docker_config"`
		StallTimeout duration `toml:"stall_timeout"`
		Attempts     int      `toml:"attempts"`
	} `toml:"registry"`
	Cache struct {
		Limit string `toml:"limit"`
	} `toml:"cache"`
	Fetch struct {
		Deadline duration `toml:"deadline"`
	} `toml:"fetch"`
	Mount struct {
		Backend string `toml:"backend"`
	} `toml:"mount"`
	Trust struct {
		DiffID     string   `toml:"diff_id"`
		Unverified []string `toml:"unverified"`
	} `toml:"trust"`
	Limits struct {
		TOCPacked   string `toml:"toc_packed"`
		TOCPlain    string `toml:"toc_plain"`
		Entries     int    `toml:"entries"`
		Path        int    `toml:"path"`
		Name        int    `toml:"name"`
		XattrValue  string `toml:"xattr_value"`
		ExtentBytes string `toml:"extent"`
		ImageBytes  string `toml:"image"`
	} `toml:"limits"`
	Metrics struct {
		Address string `toml:"address"`
	} `toml:"metrics"`
}

type duration time.Duration

// UnmarshalText reads a duration like 30s.
func (d *duration) UnmarshalText(p []byte) error {
	v, err := time.ParseDuration(string(p))
	*d = duration(v)
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
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func (c *config) check() error {
	switch blockdev.Backend(c.Mount.Backend) {
	case "auto", blockdev.FuseFile, blockdev.FuseLoop:
	default:
		return fmt.Errorf("[mount] backend = %q: want auto, %s or %s", c.Mount.Backend, blockdev.FuseFile, blockdev.FuseLoop)
	}
	switch c.Trust.DiffID {
	case "background", "before_use":
	default:
		return fmt.Errorf("[trust] diff_id = %q: want background or before_use", c.Trust.DiffID)
	}
	if c.Registry.Attempts < 1 {
		return fmt.Errorf("[registry] attempts = %d: want at least 1", c.Registry.Attempts)
	}
	_, err := c.limits()
	return err
}

func (c *config) backend() blockdev.Backend {
	if c.Mount.Backend == "auto" {
		return ""
	}
	return blockdev.Backend(c.Mount.Backend)
}

func (c *config) trust() snapshotter.Trust {
	return snapshotter.Trust{Unverified: c.Trust.Unverified, BeforeUse: c.Trust.DiffID == "before_use"}
}

func (c *config) limits() (layout.Limits, error) {
	l := layout.Limits{Entries: c.Limits.Entries, Path: c.Limits.Path, Name: c.Limits.Name}
	var xattr int64
	for key, v := range map[string]struct {
		text string
		to   *int64
	}{
		"toc_packed": {c.Limits.TOCPacked, &l.PackedIndex}, "toc_plain": {c.Limits.TOCPlain, &l.PlainIndex},
		"xattr_value": {c.Limits.XattrValue, &xattr}, "extent": {c.Limits.ExtentBytes, &l.Extent},
		"image": {c.Limits.ImageBytes, &l.Image},
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
