package registry

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// stamps are the files that say how a registry is reached, as they were when they were read. An operator who changes one need not
// tell anybody.
type stamps map[string]fs.FileInfo // nil for one that was not there

// add notes a file or directory as it is now.
func (s stamps) add(path string) (there bool) {
	st, err := os.Stat(path)
	if err != nil {
		st = nil // one that cannot be looked at is as good as none
	}
	s[path] = st
	return st != nil
}

// hold reports whether all are as they were.
func (s stamps) hold() bool {
	for path, was := range s {
		is, err := os.Stat(path)
		switch {
		case was == nil && err != nil:
		case was == nil || err != nil:
			return false
		case !os.SameFile(was, is) || !was.ModTime().Equal(is.ModTime()) || was.Size() != is.Size():
			return false
		}
	}
	return true
}

// stampsOf returns the stamps of a registry: of the directories that may be its own, up to the first that is there, and of what that
// one holds and names.
func (r *Registry) stampsOf(host string) stamps {
	s := stamps{}
	for _, root := range r.opts.ConfigPath {
		for _, name := range hostDirs(host) {
			if dir := filepath.Join(root, name); s.add(dir) {
				s.addDir(dir)
				return s
			}
		}
	}
	return s
}

// hostDirs are the names of a registry's directory, as containerd tries them.
func hostDirs(host string) []string {
	names := []string{host, "_default"}
	if i := strings.LastIndex(host, ":"); i > 0 {
		names = append([]string{host[:i] + "_" + host[i+1:] + "_"}, names...)
	}
	return names
}

// addDir adds the files of a directory and those that its hosts.toml names.
func (s stamps) addDir(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // reading the hosts says so
	}
	for _, e := range entries {
		s.add(filepath.Join(dir, e.Name()))
	}
	file := map[string]any{}
	p, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	if err != nil || toml.Unmarshal(p, &file) != nil {
		return // then Docker's files count
	}
	s.addNamed(dir, file)
	hosts, _ := file["host"].(map[string]any)
	for _, host := range hosts {
		if keys, ok := host.(map[string]any); ok {
			s.addNamed(dir, keys)
		}
	}
}

// addNamed adds the certificates and keys that a host names.
func (s stamps) addNamed(dir string, keys map[string]any) {
	var add func(named any)
	add = func(named any) {
		switch v := named.(type) {
		case string:
			if !filepath.IsAbs(v) {
				v = filepath.Join(dir, v)
			}
			s.add(v)
		case []any:
			for _, each := range v {
				add(each)
			}
		}
	}
	add(keys["ca"])
	add(keys["client"])
}
