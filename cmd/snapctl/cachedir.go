package main

import (
	"errors"
	"fmt"
	"os"
	osuser "os/user"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cacheDir is where snapctl keeps what it can make again. It is the caller's alone: what lies there decides what an image
// becomes, so a directory that others can write to is refused.
func cacheDir() (string, error) {
	dir, err := cachePath()
	if err != nil {
		return "", err
	}
	if err := privateDir(dir); err != nil {
		return "", fmt.Errorf("snapctl's cache: %w; set XDG_CACHE_HOME to a directory of your own", err)
	}
	return dir, nil
}

// cachePath returns where the cache is: below the home directory of the system's list of users where the environment names
// none, as in cron jobs and services. It is never in /tmp, where others could make it first.
func cachePath() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		me, err := osuser.Current()
		if err != nil || !filepath.IsAbs(me.HomeDir) {
			return "", errors.New("snapctl has no place for its cache: set XDG_CACHE_HOME or HOME")
		}
		dir = filepath.Join(me.HomeDir, ".cache")
	}
	return filepath.Join(dir, "remora"), nil
}

// privateDir makes a directory that only the caller can write to, and insists that one which is there is such.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var link, target unix.Stat_t
	if err := errors.Join(unix.Lstat(dir, &link), unix.Stat(dir, &target)); err != nil { // a link may be somebody else's, too
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	me := uint32(os.Geteuid())
	if link.Uid != me || target.Uid != me {
		return fmt.Errorf("%s belongs to another user", dir)
	}
	if target.Mode&0o022 != 0 {
		return fmt.Errorf("other users can write to %s", dir)
	}
	return nil
}
