package layout_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
)

// TestFill: what unlisted directories take from below keeps the limits that a layer's own attributes keep.
func TestFill(t *testing.T) {
	good := layout.Attributes{Mode: unix.S_IFDIR | 0o711, UID: 5, Xattrs: []layout.Xattr{{Name: "user.b"}, {Name: "user.a"}}}
	with := func(change func(*layout.Attributes)) layout.Attributes {
		a := good
		change(&a)
		return a
	}
	wide := []layout.Xattr{{Name: "x", Value: make([]byte, 70000)}}
	large := make([]layout.Xattr, 100)
	for i := range large {
		large[i] = layout.Xattr{Name: fmt.Sprintf("user.%d", i), Value: bytes.Repeat([]byte("x"), 1000)}
	}
	for name, c := range map[string]struct {
		from layout.Attributes
		says string // "" for none
	}{
		"good":                  {good, ""},
		"no directory":          {with(func(a *layout.Attributes) { a.Mode = unix.S_IFREG }), "has mode"},
		"nanoseconds":           {with(func(a *layout.Attributes) { a.MtimeNsec = 1e9 }), "nanoseconds"},
		"a value too large":     {with(func(a *layout.Attributes) { a.Xattrs = wide }), "extended attribute"},
		"too much of one":       {with(func(a *layout.Attributes) { a.Xattrs = append(large, large...) }), "bytes of extended attributes"},
		"too much all together": {with(func(a *layout.Attributes) { a.Xattrs = large }), "10 unlisted directories"},
	} {
		t.Run(name, func(t *testing.T) {
			b := layout.NewBuilder(layout.Limits{})
			if _, _, err := b.Add("a/b/c/d/e/f/g/h/i/j/file", layout.Inode{Mode: unix.S_IFREG}); err != nil {
				t.Fatal(err)
			}
			l, err := b.Finish(blob.Plain, []blob.Unit{{Len: 1}}, func(u uint32) uint32 { return u })
			if err != nil {
				t.Fatal(err)
			}
			if last := l.Implicit[len(l.Implicit)-1].Path; len(l.Implicit) != 10 || last != "a/b/c/d/e/f/g/h/i/j" {
				t.Fatalf("%d unlisted directories, the last %q", len(l.Implicit), last)
			}
			err = l.Fill(layout.Limits{Tree: 1 << 20}, func(string) (layout.Attributes, bool, error) { return c.from, true, nil })
			switch {
			case c.says == "" && err != nil:
				t.Error(err)
			case c.says != "" && (!errors.Is(err, layout.ErrInvalid) || !strings.Contains(err.Error(), c.says)):
				t.Errorf("got %v, want that %s", err, c.says)
			case c.says == "" && (l.Inodes[1].UID != 5 || l.Inodes[1].Xattrs[0].Name != "user.a"):
				t.Errorf("got %+v", l.Inodes[1])
			}
		})
	}
}
