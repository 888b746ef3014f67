package snapshotter

import (
	"path/filepath"
	"strings"

	"github.com/remora-storage/remora/blockdev/mounts"
)

// earlierMounts are what an earlier process left mounted and this one may take over.
type earlierMounts struct {
	scratch bool                      // the snapshots' own file system; see prepareScratch
	layers  map[string][]mounts.Mount // by directory, the oldest first
	gates   []mounts.Mount            // gates, and what is mounted on them
}

// sortMounts finds what an earlier process left mounted, and takes away what nobody can use: what
// depends on a connection that is dead, and what is not of a layer.
func (s *Snapshotter) sortMounts(left []mounts.Mount) earlierMounts {
	e := earlierMounts{layers: map[string][]mounts.Mount{}}
	for _, m := range left {
		switch {
		case m.Dir == s.snapshotsDir() && m.Type == "ext4":
			e.scratch = true
		case strings.HasPrefix(m.Dir, s.gatesDir()+"/"):
			e.gates = append(e.gates, m)
		case s.exports.holds(m):
		case strings.HasPrefix(m.Dir, s.snapshotsDir()+"/") && filepath.Base(m.Dir) == "fs":
			e.layers[m.Dir] = append(e.layers[m.Dir], m)
		default:
			defer func() { // the newest first
				if err := s.kernel.Unmount(m.Dir); err != nil {
					s.log.Warn("mount of an earlier life stays", "dir", m.Dir, "err", err)
				}
			}()
		}
	}
	return e
}
