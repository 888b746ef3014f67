package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread() // the bounding set is a thread's, and this one becomes the program
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: confine UNIT PROGRAM [ARGUMENT...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "confine:", err)
		os.Exit(1)
	}
}

// run becomes the program.
func run(unitFile string, args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	u, err := readUnit(unitFile)
	if err != nil {
		return err
	}
	if mask := u.last("UMask"); mask != "" {
		bits, err := strconv.ParseUint(mask, 8, 16)
		if err != nil {
			return err
		}
		unix.Umask(int(bits))
	}
	if err := dropCapabilities(u); err != nil {
		return err
	}
	if err := filterCalls(u); err != nil {
		return err
	}
	return unix.Exec(program, args, os.Environ())
}

// A unit is what its [Service] section says: each value of a key, in order.
type unit map[string][]string

func readUnit(path string) (unit, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	u, section := unit{}, ""
	for line := range strings.Lines(string(p)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if key, value, ok := strings.Cut(line, "="); ok && section == "[Service]" && !strings.HasPrefix(line, "#") {
			u[key] = append(u[key], value)
		}
	}
	return u, nil
}

func (u unit) last(key string) string {
	if all := u[key]; len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}

func (u unit) yes(key string) bool { return u.last(key) == "yes" }

// words returns all words of all values of a key.
func (u unit) words(key string) []string { return strings.Fields(strings.Join(u[key], " ")) }

// capabilities by their numbers in <linux/capability.h>.
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
	NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
	SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
	WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// dropCapabilities takes from the bounding set what the unit does not name. The program loses it as it begins.
func dropCapabilities(u unit) error {
	if _, ok := u["CapabilityBoundingSet"]; !ok {
		return nil
	}
	keep := map[string]bool{}
	for _, name := range u.words("CapabilityBoundingSet") {
		keep[strings.TrimPrefix(name, "CAP_")] = true
	}
	for number, name := range capabilities {
		if !keep[name] {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil {
				return fmt.Errorf("drop CAP_%s: %w", name, err)
			}
		}
		delete(keep, name)
	}
	for name := range keep {
		return fmt.Errorf("CapabilityBoundingSet names CAP_%s, which is none", name)
	}
	return nil
}
