package mounts

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/heap"
)

func TestParse(t *testing.T) {
	lowers := make([]string, 500)
	for i := range lowers {
		lowers[i] = fmt.Sprintf("/%0200d/fs", i)
	}
	lines := []string{
		`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue`, // of proc_pid_mountinfo(5)
		`37 35 0:41 / /with\040a\134space rw - tmpfs  rw,size=1k`,
		`38 35 0:42 / /long ro - overlay overlay ro,lowerdir=` + strings.Join(lowers, ":") + `,upperdir=/u`,
		`39 35 0:43 / /new ro - overlay none ro,lowerdir+=/a:b,lowerdir+=/c`,
		`40 35 0:44 / /nothing ro`,
		`41 35 x:y / /odd ro - a b c`,
	}
	if n := len(lines[2]); n < 100<<10 {
		t.Fatalf("the long line has only %d bytes", n)
	}
	all, err := parse(strings.NewReader(strings.Join(lines, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mount{
		{Dir: "/mnt2", Type: "ext3", Source: "/dev/root", Options: "rw,errors=continue", Root: "/mnt1", major: 98},
		{Dir: `/with a\space`, Type: "tmpfs", Options: "rw,size=1k", Root: "/", minor: 41},
		{
			Dir: "/long", Type: "overlay", Source: "overlay", Options: "ro,lowerdir=" + strings.Join(lowers, ":") + ",upperdir=/u", Root: "/",
			minor: 42,
		},
		{Dir: "/new", Type: "overlay", Source: "none", Options: "ro,lowerdir+=/a:b,lowerdir+=/c", Root: "/", minor: 43},
	}
	if !slices.Equal(all, want) {
		t.Fatalf("got %+v", all)
	}
	if got := all[2].Lowers(); !slices.Equal(got, lowers) {
		t.Errorf("%d lower directories", len(got))
	}
	if got := all[3].Lowers(); !slices.Equal(got, []string{"/a:b", "/c"}) {
		t.Errorf("lower directories %q", got)
	}
}

// TestEverywhere: this process's namespace is among all, and has what Own and Under say.
func TestEverywhere(t *testing.T) {
	own, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	var found bool
	err = Everywhere(func(n Namespace, m Mount) {
		found = found || n.Own && m.Dir == "/proc" && strings.HasPrefix(n.String(), "process "+n.PID+" (")
	})
	if err != nil || !found {
		t.Errorf("/proc was not found: %v", err)
	}
	below := slices.DeleteFunc(own, func(m Mount) bool { return !strings.HasPrefix(m.Dir, "/dev/") })
	if under, err := Under("/dev"); err != nil || !slices.Equal(under, below) {
		t.Errorf("below /dev lie %v: %v", under, err)
	}
	if _, err := On(os.DevNull + "x"); err == nil {
		t.Error("a device that is not there was found")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("36 35 98:0 / /mnt rw - overlay none rw,lowerdir=/a:/b\n")
	f.Fuzz(func(t *testing.T, s string) {
		heap.RecordMost(len(s)).Allocates(t, func() int64 {
			all, _ := parse(strings.NewReader(s)) // must not panic
			for _, m := range all {
				m.Lowers()
			}
			return 0
		})
	})
}
