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
func readMounts() ([]mountLine, error) {
	f, err := os.Open("/proc/self/mountinfo")
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

// clearMounts takes away the mounts of an earlier life, the newest first, but keeps layers that
// the kernel reads from complete image files: containers must not lose those, and nothing needs
// us there. It returns the directories of what is kept.
func (s *Snapshotter) clearMounts(left []mountLine) (kept map[string]bool) {
	kept = map[string]bool{}
	count := map[string]int{}
	for _, m := range left {
		count[m.dir]++
	}
	for i := len(left) - 1; i >= 0; i-- {
		m := left[i]
		if m.dir == s.snapshotsDir() && m.fstype == "ext4" {
			kept[m.dir] = true // see prepareScratch
			continue
		}
		if m.fstype == "erofs" && count[m.dir] == 1 && strings.HasPrefix(m.source, filepath.Join(s.root, "cache")+"/") {
			if _, err := os.Stat(m.source); err == nil {
				kept[m.dir] = true
				continue
			}
		}
		if err := blockdev.Unmount(m.dir); err != nil {
			s.log.Warn("mount of an earlier life stays", "dir", m.dir, "err", err)
		}
	}
	return kept
}

// findBroken names the active snapshots that are mounted over layers whose server has died: a
// process in them may get EIO until its container is started again.
func (s *Snapshotter) findBroken(kept map[string]bool) {
	all, err := readMounts()
	if err != nil {
		s.log.Warn("mounts not read", "err", err)
		return
	}
	for _, m := range all {
		id, ok := s.activeOf(m)
		if !ok {
			continue
		}
		for _, lower := range s.lowersOf(m) {
			b := s.bindings[lower]
			if b != nil && !kept[b.fsDir()] {
				s.broken[id] = "remorad was restarted while it was mounted; reads of data that was not cached fail until its container is started again"
				s.log.Warn("snapshot is broken", "id", id, "mounted", m.dir)
				break
			}
		}
	}
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
