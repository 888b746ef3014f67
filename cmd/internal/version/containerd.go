package version

import (
	"fmt"
	"strings"
)

// MapsMounts reports whether a version of containerd shows a container in a user namespace what is mounted on the directories of
// its layers. Until 2.3 containerd's idmapped copy of these directories leaves such mounts out, so that remote layers are empty. A
// version that cannot be read counts as new.
func MapsMounts(containerd string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(containerd, "v"), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > 2 || major == 2 && minor >= 3
}
