package mount

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/heap"
)

// TestParse: nodev and nosuid come first, the last of contradicting options counts, and what is for mount(8) alone is not told to the
// kernel, or refused.
func TestParse(t *testing.T) {
	const nothing = unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID
	for asked, c := range map[string]struct {
		readOnly bool
		attrs    int
		super    string
	}{
		"":                                {false, nothing, ""},
		"dev":                             {false, unix.MOUNT_ATTR_NOSUID, ""},
		"dev,suid":                        {false, 0, ""},
		"suid,nosuid":                     {false, nothing, ""},
		"ro,rw,noatime":                   {false, nothing | unix.MOUNT_ATTR_NOATIME, "ro rw"},
		"noatime,relatime,noexec":         {false, nothing | unix.MOUNT_ATTR_NOEXEC, ""},
		"strictatime,noatime":             {false, nothing | unix.MOUNT_ATTR_NOATIME, ""},
		"defaults,_netdev,x-systemd.a=b,": {false, nothing, ""},
		"sync,data=journal,nobarrier":     {false, nothing, "sync data=journal nobarrier"},
		`context="a:b,c",ro`:              {false, nothing | unix.MOUNT_ATTR_RDONLY, "context=a:b,c ro"},
		"noexec":                          {true, nothing | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_RDONLY, "ro"},
	} {
		o, err := parse(asked, c.readOnly)
		if err != nil || o.attrs != c.attrs || strings.Join(o.super, " ") != c.super {
			t.Errorf("%q: %+v, %v; want %#x and %q", asked, o, err, c.attrs, c.super)
		}
	}
	for _, asked := range []string{"remount", "bind,ro", "loop=/dev/loop3", "X-mount.mkdir"} {
		if _, err := parse(asked, false); err == nil || !strings.Contains(err.Error(), strconv.Quote(strings.TrimSuffix(asked, ",ro"))) {
			t.Errorf("%q: %v", asked, err)
		}
	}
	if _, err := parse("rw", true); err == nil {
		t.Error("what is read-only can be written to")
	}
	if o, err := parse("rprivate", false); err != nil || !slices.Equal(o.propagation, []uintptr{unix.MS_PRIVATE | unix.MS_REC}) {
		t.Errorf("rprivate: %+v, %v", o, err)
	}
	if !ReadOnly("noatime,ro") || ReadOnly("ro,rw") || ReadOnly("") {
		t.Error("what is read-only is not known")
	}
}

// FuzzParse: any options are read or refused, at a cost that grows with their length alone.
func FuzzParse(f *testing.F) {
	f.Add(`context="a,b",ro,x-y=z`)
	f.Fuzz(func(t *testing.T, s string) {
		most := heap.Cost{Memory: 64<<10 + 256*int64(len(s)), CPU: time.Second + time.Duration(len(s))*10*time.Microsecond}
		most.Allocates(t, func() int64 {
			if o, err := parse(s, false); err == nil && len(o.super)+len(o.propagation) > len(s) {
				t.Errorf("%q: %+v", s, o)
			}
			return 0
		})
	})
}
