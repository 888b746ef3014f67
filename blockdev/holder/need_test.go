package holder

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNeeded: a group with a mark is needed, and one without is not, whatever files were given along; what is not known is.
func TestNeeded(t *testing.T) {
	group := func(marked string) *os.File {
		fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_FID|unix.FAN_CLOEXEC, unix.O_RDONLY) // which takes no rights
		if err != nil {
			t.Skipf("no fanotify here: %v", err)
		}
		f := os.NewFile(uintptr(fd), "group")
		t.Cleanup(func() { f.Close() })
		if marked != "" {
			if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_MODIFY, unix.AT_FDCWD, marked); err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	image, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	fd, err := unix.MemfdCreate("slots", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	slots := os.NewFile(uintptr(fd), "slots")
	defer slots.Close()
	for name, c := range map[string]struct {
		items map[string][]*os.File
		want  bool
	}{
		"nothing":                  {nil, false},
		"slots":                    {map[string][]*os.File{"slots": {slots}}, false},
		"a group without marks":    {map[string][]*os.File{"group": {group(""), slots}, "image": {image}}, false},
		"a group with a mark":      {map[string][]*os.File{"group": {group(t.TempDir()), slots}}, true},
		"a file that stands alone": {map[string][]*os.File{"image": {image}}, true},
	} {
		h := server{items: c.items, log: slog.New(slog.DiscardHandler)}
		if got := needed(c.items); got != c.want || h.endIdle(time.Hour) == c.want {
			t.Errorf("%s: needed: %v, want %v", name, got, c.want)
		}
		h.left = time.Now()
		if h.endIdle(time.Hour) {
			t.Errorf("%s: it ends before its time", name)
		}
	}
}
