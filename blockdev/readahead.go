package blockdev

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// lazyReadahead is how far the kernel reads ahead on a lazily mounted image, in KiB. Its default of
// 128 is for disks; here each step costs an event or a request.
const lazyReadahead = 512

var bdiMu sync.Mutex // one mount at a time, so that its entry below is the new one

// MountLazyEROFS is MountEROFS for an image whose reads cost more than those of a local file.
func MountLazyEROFS(source, dir string) error {
	bdiMu.Lock()
	defer bdiMu.Unlock()
	before := erofsDevices()
	if err := MountEROFS(source, dir); err != nil {
		return err
	}
	for name := range erofsDevices() {
		if !before[name] {
			// It is only speed. Should somebody else have mounted meanwhile, theirs is tuned too.
			_ = os.WriteFile(filepath.Join(bdiDir, name, "read_ahead_kb"), []byte(strconv.Itoa(lazyReadahead)), 0)
		}
	}
	return nil
}

const bdiDir = "/sys/class/bdi"

// erofsDevices lists the backing devices of file-backed EROFS mounts; nothing else tells their names.
func erofsDevices() map[string]bool {
	all := map[string]bool{}
	entries, err := os.ReadDir(bdiDir)
	if err != nil {
		return all
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "erofs-") {
			all[e.Name()] = true
		}
	}
	return all
}
