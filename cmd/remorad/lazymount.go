package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// needsNothingLazy refuses to start where a read that only remorad can answer would be needed to
// answer reads: a program, certificate or helper on a lazy mount is a deadlock to come.
func needsNothingLazy(cfg *config) error {
	needed := []string{"/proc/self/exe", "/etc/ssl/certs", "/etc/ssl/certs/ca-certificates.crt", "/etc/resolv.conf"}
	needed = append(needed, cfg.Registry.ConfigPath...)
	if cfg.Registry.DockerConfig != "" {
		needed = append(needed, cfg.Registry.DockerConfig)
		needed = append(needed, credentialHelpers(cfg.Registry.DockerConfig)...)
	}
	for _, p := range needed {
		lazy, err := onLazyMount(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("look where %s lies: %w", p, err)
		}
		if lazy {
			real, _ := filepath.EvalSymlinks(p) // for people
			return fmt.Errorf("%s (%s) lies on a lazily mounted image: a read of it would wait for remorad itself; install it on a file system of "+
				"the node", p, real)
		}
	}
	return nil
}

// credentialHelpers returns the programs that Docker's configuration names.
func credentialHelpers(config string) (programs []string) {
	if st, err := os.Stat(config); err == nil && st.IsDir() {
		config = filepath.Join(config, "config.json")
	}
	p, err := os.ReadFile(config)
	if err != nil {
		return nil // it is read again, and complained of, when it is needed
	}
	for _, name := range helperNames(p) {
		if path, err := exec.LookPath("docker-credential-" + name); err == nil {
			programs = append(programs, path)
		}
	}
	return programs
}

// helperNames returns the helpers in Docker's config.json.
func helperNames(config []byte) (names []string) {
	var c struct {
		CredsStore  string            `json:"credsStore"`
		CredHelpers map[string]string `json:"credHelpers"`
	}
	if json.Unmarshal(config, &c) != nil {
		return nil // complained of where it is used
	}
	if c.CredsStore != "" {
		names = append(names, c.CredsStore)
	}
	for _, name := range c.CredHelpers {
		names = append(names, name)
	}
	return names
}

const (
	erofsMagic = 0xe0f5e1e2 // EROFS_SUPER_MAGIC_V1
	fuseMagic  = 0x65735546 // FUSE_SUPER_MAGIC
)

// onLazyMount reports whether a file lies on an image, or on an overlay over one.
func onLazyMount(p string) (bool, error) {
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return false, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(real, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: real, Err: err}
	}
	switch uint32(st.Type) {
	case erofsMagic:
		return true, nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return overLazy(real)
	}
	return false, nil
}

// overLazy reports whether the overlay that a file lies on has a layer of remora below.
func overLazy(p string) (bool, error) {
	all, err := mounts.Own()
	if err != nil {
		return false, err
	}
	var at mounts.Mount
	for _, m := range all {
		if within(p, m.Dir) && len(m.Dir) >= len(at.Dir) {
			at = m
		}
	}
	for _, dir := range at.Lowers() {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && (uint32(st.Type) == erofsMagic || st.Type == fuseMagic) {
			return true, nil
		}
	}
	return false, nil
}

func within(p, dir string) bool { return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/") }
