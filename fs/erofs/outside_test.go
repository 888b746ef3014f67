package erofs_test

import (
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
)

// TestReadByOthers: go-erofs and dump.erofs see the tree that the kernel sees.
func TestReadByOthers(t *testing.T) {
	l, byName := buildOdds(t)
	image := writeImage(t, l, func(i uint32) []byte { return []byte(strings.Repeat("z", int(min(l.Inodes[i].Size, 5000)))) })
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		o, ok := byName[p]
		if !ok {
			return nil
		}
		seen++
		st, err := d.Info()
		if err != nil {
			return err
		}
		if o.in.IsRegular() && st.Size() != o.in.Size {
			t.Errorf("%.40s: size %d, want %d", p, st.Size(), o.in.Size)
		}
		if st.Mode().Perm() != fs.FileMode(o.in.Mode&0o777) {
			t.Errorf("%.40s: mode %v, want %#o", p, st.Mode(), o.in.Mode)
		}
		if o.in.MtimeSec >= 0 && st.ModTime().UnixNano() != o.in.MtimeSec*1e9+int64(o.in.MtimeNsec) {
			t.Errorf("%.40s: time %v, want %d.%09d", p, st.ModTime(), o.in.MtimeSec, o.in.MtimeNsec)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	want := 0
	for name := range byName {
		if !strings.Contains(name, ".wh.") {
			want++
		}
	}
	if seen != want {
		t.Errorf("go-erofs shows %d of %d entries", seen, want)
	}
	got, err := fs.ReadFile(tree, "dir/sub/file")
	if err != nil || len(got) != 5000 || strings.Trim(string(got), "z") != "" {
		t.Errorf("dir/sub/file: %d bytes, %v", len(got), err)
	}

	out, err := exec.Command("dump.erofs", "-s", image).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "sb_csum") && !strings.Contains(string(out), "sb_chksum") {
		t.Errorf("dump.erofs -s: %v\n%s", err, out)
	}
	out, err = exec.Command("dump.erofs", "--path=/dir/sub/file", image).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "5000") {
		t.Errorf("dump.erofs --path: %v\n%s", err, out)
	}
}
