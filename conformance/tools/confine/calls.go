package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// filterCalls has the kernel refuse what the unit does not allow, as systemd's filters do.
func filterCalls(u unit) error {
	if !u.yes("NoNewPrivileges") {
		return fmt.Errorf("NoNewPrivileges is not set: filters need it where there is no systemd")
	}
	allowed, err := allowedCalls(u)
	if err != nil {
		return err
	}
	for _, p := range []seccomp.Policy{ // an errno is EPERM, as SystemCallErrorNumber of the units says
		{DefaultAction: seccomp.ActionAllow, Syscalls: refusals(u)},
		{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{{Action: seccomp.ActionAllow, Names: allowed}}},
	} {
		if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: p}); err != nil {
			return fmt.Errorf("filter system calls: %w", err)
		}
	}
	return nil
}

// allowedCalls returns the system calls of SystemCallFilter, without those that a later value with ~ takes away.
func allowedCalls(u unit) ([]string, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	allowed := map[string]bool{}
	// systemd allows @default by itself: what every program needs, execve among it.
	for _, value := range append([]string{"@default"}, u["SystemCallFilter"]...) {
		value, taken := strings.CutPrefix(value, "~")
		calls, err := expand(strings.Fields(value))
		if err != nil {
			return nil, err
		}
		for _, name := range calls {
			if _, known := info.SyscallNames[name]; known {
				allowed[name] = !taken
			}
		}
	}
	var names []string
	for name, yes := range allowed {
		if yes {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// expand replaces groups, @mount say, by their system calls.
func expand(names []string) (calls []string, err error) {
	for _, name := range names {
		if !strings.HasPrefix(name, "@") {
			calls = append(calls, name)
			continue
		}
		more, err := group(name)
		if err != nil {
			return nil, err
		}
		calls = append(calls, more...)
	}
	return calls, nil
}

func group(name string) (calls []string, err error) {
	out, err := exec.Command("systemd-analyze", "--no-pager", "syscall-filter", name).Output()
	if err != nil {
		return nil, fmt.Errorf("systemd-analyze syscall-filter %s: %w", name, err)
	}
	for line := range strings.Lines(string(out)) {
		word := strings.TrimSpace(line)
		switch {
		case word == name || word == "" || strings.HasPrefix(word, "#"):
		case strings.HasPrefix(word, "@"):
			more, err := group(word)
			if err != nil {
				return nil, err
			}
			calls = append(calls, more...)
		default:
			calls = append(calls, word)
		}
	}
	return calls, nil
}

// refusals returns the calls that other directives refuse by their arguments.
func refusals(u unit) []seccomp.SyscallGroup {
	var all []seccomp.NameWithConditions
	refuse := func(call string, conditions ...seccomp.Condition) {
		all = append(all, seccomp.NameWithConditions{Name: call, Conditions: conditions})
	}
	bits := func(argument uint32, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: seccomp.BitsSet, Value: value}
	}
	if families := u.words("RestrictAddressFamilies"); len(families) > 0 {
		var other []seccomp.Condition
		for _, f := range families {
			number := map[string]uint64{"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6}[f]
			other = append(other, seccomp.Condition{Argument: 0, Operation: seccomp.NotEqual, Value: number})
		}
		refuse("socket", other...)
	}
	if spaces := u.last("RestrictNamespaces"); spaces != "" {
		for name, flag := range map[string]uint64{
			"user": unix.CLONE_NEWUSER, "mnt": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "uts": unix.CLONE_NEWUTS,
			"ipc": unix.CLONE_NEWIPC, "cgroup": unix.CLONE_NEWCGROUP,
		} {
			if !slices.Contains(strings.Fields(spaces), name) {
				refuse("clone", bits(0, flag))
				refuse("unshare", bits(0, flag))
				refuse("setns", bits(1, flag))
			}
		}
	}
	if u.yes("MemoryDenyWriteExecute") {
		refuse("mmap", bits(2, unix.PROT_WRITE), bits(2, unix.PROT_EXEC))
		refuse("mprotect", bits(2, unix.PROT_EXEC))
	}
	if u.yes("RestrictSUIDSGID") {
		for _, mode := range []uint64{unix.S_ISUID, unix.S_ISGID} {
			refuse("fchmod", bits(1, mode))
			refuse("fchmodat", bits(2, mode))
			refuse("mknodat", bits(2, mode))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return []seccomp.SyscallGroup{{Action: seccomp.ActionErrno, NamesWithCondtions: all}}
}
