package main

import (
	"os"
	osuser "os/user"
	"path/filepath"
	"strings"
	"testing"
)

// TestCacheDir: who has no HOME has a cache in the home directory that the system knows, and none in /tmp, where another user
// could make it first.
func TestCacheDir(t *testing.T) {
	newUser(t)
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	me, err := osuser.Current()
	if err != nil {
		t.Fatal(err)
	}
	got, err := cachePath()
	if want := filepath.Join(me.HomeDir, ".cache", "remora"); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	if strings.HasPrefix(got, os.TempDir()+"/") {
		t.Errorf("%s is in a directory that all users write to", got)
	}
}

// TestCacheDirIsPrivate: a cache that is not the caller's alone is refused, and what to do is said.
func TestCacheDirIsPrivate(t *testing.T) {
	u := newUser(t)
	dir, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("made with %v, %v", st.Mode(), err)
	}
	refused := func(why string) {
		t.Helper()
		_, err := cacheDir()
		if err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "XDG_CACHE_HOME") {
			t.Errorf("got %v, want %q", err, why)
		}
		u.run("convert", "oci:none:v1", "oci:"+u.path("out")+":v1").fails(1, why)
		u.run("index", "ls").fails(1, why)
	}
	chmod := func(mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(0o777)
	refused("other users can write to " + dir)
	chmod(0o755)
	if _, err := cacheDir(); err != nil {
		t.Errorf("others may read it: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Log("only root can make a directory of another user's")
		return
	}
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	refused(dir + " belongs to another user")
	// A link of another user's, to a directory of ours.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(u.path("ours"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(u.path("ours"), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := cacheDir(); err != nil {
		t.Errorf("a link of our own: %v", err)
	}
	if err := os.Lchown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	refused(dir + " belongs to another user")
}
