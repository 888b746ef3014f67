package snapshotter

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"

	"github.com/remora-storage/remora/blockdev"
)

// A mountLine is what we use of a line of /proc/self/mountinfo.
type mountLine struct {
	dir, fstype, source, options string
}

// readMounts returns this process's mounts, oldest first.
func readMounts() ([]mountLine, error) { return readMountsOf("/proc/self/mountinfo") }

func readMountsOf(path string) ([]mountLine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mountLine
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		before, after, ok := strings.Cut(in.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 2 {
			continue
		}
		m := mountLine{dir: unescape(fields[4]), fstype: rest[0], source: unescape(rest[1])}
		if len(rest) > 2 {
			m.options = rest[2]
		}
		all = append(all, m)
	}
	return all, in.Err()
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func mountsUnder(root string) ([]mountLine, error) {
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	var under []mountLine
	for _, m := range all {
		if strings.HasPrefix(m.dir, root+"/") {
			under = append(under, m)
		}
	}
	return under, nil
}

// earlierMounts are what an earlier process left mounted and this one may take over.
type earlierMounts struct {
	scratch bool                   // the snapshots' own file system; see prepareScratch
	layers  map[string][]mountLine // by directory, the oldest first
}

// sortMounts finds what an earlier process left mounted, and takes away what nobody can use: what
// depends on a connection that is dead, and what is not of a layer.
func (s *Snapshotter) sortMounts(left []mountLine) earlierMounts {
	e := earlierMounts{layers: map[string][]mountLine{}}
	files, trees := s.exports.adopted()
	for _, m := range left {
		switch {
		case m.dir == s.snapshotsDir() && m.fstype == "ext4":
			e.scratch = true
		case m.dir == s.exports.filesDir() && files, m.dir == s.exports.treesDir() && trees:
		case strings.HasPrefix(m.dir, s.snapshotsDir()+"/") && filepath.Base(m.dir) == "fs":
			e.layers[m.dir] = append(e.layers[m.dir], m)
		default:
			defer func() { // the newest first
				if err := blockdev.Unmount(m.dir); err != nil {
					s.log.Warn("mount of an earlier life stays", "dir", m.dir, "err", err)
				}
			}()
		}
	}
	return e
}

// activeOf returns the snapshot whose upper directory an overlay mount has.
func (s *Snapshotter) activeOf(m mountLine) (id string, ok bool) {
	if m.fstype != "overlay" {
		return "", false
	}
	for opt := range strings.SplitSeq(m.options, ",") {
		if dir, is := strings.CutPrefix(opt, "upperdir="); is && strings.HasPrefix(dir, s.snapshotsDir()+"/") {
			return filepath.Base(filepath.Dir(dir)), true
		}
	}
	return "", false
}

// lowersOf returns the snapshots whose directories are an overlay mount's lower ones. containerd
// shortens the paths, so only the parts "<id>/fs" are relied on.
func (s *Snapshotter) lowersOf(m mountLine) (ids []string) {
	for opt := range strings.SplitSeq(m.options, ",") {
		dirs, is := strings.CutPrefix(opt, "lowerdir=")
		if !is {
			dirs, is = strings.CutPrefix(opt, "lowerdir+=")
		}
		if !is {
			continue
		}
		for dir := range strings.SplitSeq(dirs, ":") {
			ids = append(ids, filepath.Base(filepath.Dir(dir)))
		}
	}
	return ids
}
