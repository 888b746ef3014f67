package snapshotter

import (
	"path/filepath"
	"strings"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// overlayOf returns the active snapshot whose upper directory an overlay mount has, if it is one of ours, and the snapshots whose
// directories are its lower ones.
//
// containerd shortens the paths of many lower directories, and maps those of containers in user namespaces elsewhere, so of what we told
// it only the parts ID/fs are relied on. Other containerds count their snapshots, too, so a number alone does not make one ours: its
// directory does, or the upper directory, or, of a view, which has none, the source.
func (g *base) overlayOf(m mounts.Mount) (active string, lowers []string) {
	if m.Type != "overlay" {
		return "", nil
	}
	for opt := range strings.SplitSeq(m.Options, ",") {
		if dir, is := strings.CutPrefix(opt, "upperdir="); is && strings.HasPrefix(dir, g.snapshotsDir()+"/") {
			active = filepath.Base(filepath.Dir(dir))
		}
	}
	told := active != "" || m.Source == g.snapshotsDir()
	for _, dir := range m.Lowers() {
		of := filepath.Dir(filepath.Clean(dir))
		if in := filepath.Dir(of); told || in == g.snapshotsDir() || in == g.gatesDir() {
			lowers = append(lowers, filepath.Base(of))
		}
	}
	return active, lowers
}
