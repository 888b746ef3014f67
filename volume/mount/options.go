package mount

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// options are what mount(8)'s -o is to the kernel.
type options struct {
	attrs       int      // of the mount
	super       []string // of the file system, in order; with or without a value
	propagation []uintptr
}

// attributes are options of a mount: the bits that each one clears and sets.
var attributes = map[string]struct{ clear, set int }{
	"ro": {0, unix.MOUNT_ATTR_RDONLY}, "rw": {unix.MOUNT_ATTR_RDONLY, 0},
	"nosuid": {0, unix.MOUNT_ATTR_NOSUID}, "suid": {unix.MOUNT_ATTR_NOSUID, 0},
	"nodev": {0, unix.MOUNT_ATTR_NODEV}, "dev": {unix.MOUNT_ATTR_NODEV, 0},
	"noexec": {0, unix.MOUNT_ATTR_NOEXEC}, "exec": {unix.MOUNT_ATTR_NOEXEC, 0},
	"noatime": {unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_NOATIME}, "atime": {unix.MOUNT_ATTR__ATIME, 0},
	"relatime": {unix.MOUNT_ATTR__ATIME, 0}, "norelatime": {0, 0},
	"strictatime": {unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_STRICTATIME}, "nostrictatime": {unix.MOUNT_ATTR__ATIME, 0},
	"nodiratime": {0, unix.MOUNT_ATTR_NODIRATIME}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, 0},
	"nosymfollow": {0, unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, 0},
}

var propagations = map[string]uintptr{
	"shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "private": unix.MS_PRIVATE, "unbindable": unix.MS_UNBINDABLE,
	"rshared": unix.MS_SHARED | unix.MS_REC, "rslave": unix.MS_SLAVE | unix.MS_REC, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// Options of mount(8) that say nothing to the kernel, and those that do not make a mount of a device.
var (
	forOthers = words("defaults auto noauto user nouser users nousers owner group nofail _netdev silent loud")
	notHere   = words("remount bind rbind move loop offset sizelimit")
)

func words(s string) map[string]bool {
	all := map[string]bool{}
	for _, w := range strings.Fields(s) {
		all[w] = true
	}
	return all
}

// parse reads options as mount(8) takes them, the last of those that contradict each other counts. Device nodes and set-user-ID
// programs have no effect unless they are asked for: everybody who can write to a volume's store could put them there.
func parse(asked string, readOnly bool) (o options, err error) {
	all := []string{"nodev", "nosuid"}
	if readOnly {
		all = append(all, "ro")
	}
	for _, opt := range append(all, split(asked)...) {
		name, _, _ := strings.Cut(opt, "=")
		a, isAttribute := attributes[opt]
		propagation, isPropagation := propagations[opt]
		switch {
		case opt == "" || forOthers[name] || strings.HasPrefix(name, "x-") || name == "comment":
		case notHere[name] || strings.HasPrefix(name, "X-"):
			return o, fmt.Errorf("mount option %q: not for a volume's file system", opt)
		case isPropagation:
			o.propagation = append(o.propagation, propagation)
		case isAttribute:
			o.attrs = o.attrs&^a.clear | a.set
			if opt == "ro" || opt == "rw" {
				o.super = append(o.super, opt)
			}
		default:
			o.super = append(o.super, opt)
		}
	}
	if readOnly && o.attrs&unix.MOUNT_ATTR_RDONLY == 0 {
		return o, fmt.Errorf("mount option %q: the volume is read-only", "rw")
	}
	return o, nil
}

// split cuts at commas that are not in quotes.
func split(s string) []string {
	quoted := false
	all := strings.FieldsFunc(s, func(r rune) bool {
		quoted = quoted != (r == '"')
		return r == ',' && !quoted
	})
	for i := range all {
		all[i] = strings.ReplaceAll(all[i], `"`, "")
	}
	return all
}

// CheckOptions says what is wrong with the options of a mount, as far as the kernel need not be asked.
func CheckOptions(asked string) error {
	_, err := parse(asked, false)
	return err
}

// ReadOnly reports whether a mount with these options is.
func ReadOnly(asked string) bool {
	o, err := parse(asked, false)
	return err == nil && o.attrs&unix.MOUNT_ATTR_RDONLY != 0
}
