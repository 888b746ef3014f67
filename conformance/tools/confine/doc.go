// Command confine runs a program under the directives of a systemd unit that a process can put on itself, where no systemd runs:
// capabilities, system calls, address families, namespaces, modes and the umask. Control groups are left out: MemoryMax,
// DeviceAllow, IPAddressDeny.
//
//	confine UNIT PROGRAM [ARGUMENT...]
//
// Groups of system calls are those of the systemd-analyze of the machine.
package main
