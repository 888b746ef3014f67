package snapshotter

import "os"

// replaceFile writes a file anew: whoever reads it, after a kill, too, finds all of the old or all of the
// new content.
func replaceFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
