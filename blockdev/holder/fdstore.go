package holder

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fdStore is systemd's file descriptor store (sd_notify(3), FDSTORE=1): a third reference, in
// process 1, to everything that a holder keeps. After the holder's death systemd starts it again
// with all of them. Without systemd it does nothing.
type fdStore struct {
	log     *slog.Logger
	address string // of the notification socket; "" if there is none
}

const firstInherited = 3 // SD_LISTEN_FDS_START

// openStore returns the store and what it kept for us.
func openStore(log *slog.Logger) (*fdStore, map[string][]*os.File) {
	s := &fdStore{log: log, address: os.Getenv("NOTIFY_SOCKET")}
	items := map[string][]*os.File{}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return s, items
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	parts := map[string]map[int]*os.File{}
	for i := range n {
		f := os.NewFile(uintptr(firstInherited+i), "stored")
		unix.CloseOnExec(firstInherited + i)
		name, part, ok := "", 0, false
		if i < len(names) {
			name, part, ok = parseStoreName(names[i])
		}
		if !ok {
			f.Close()
			continue
		}
		if parts[name] == nil {
			parts[name] = map[int]*os.File{}
		}
		parts[name][part] = f
	}
	for name, files := range parts {
		for i := range len(files) {
			if files[i] == nil {
				break // a part is missing: what we have is of no use
			}
			items[name] = append(items[name], files[i])
		}
	}
	return s, items
}

// A stored descriptor's name is remora.<hex of the name>.<part>: systemd allows few characters.
func storeName(name string, part int) string {
	return fmt.Sprintf("remora.%s.%d", hex.EncodeToString([]byte(name)), part)
}

func parseStoreName(s string) (name string, part int, ok bool) {
	f := strings.Split(s, ".")
	if len(f) != 3 || f[0] != "remora" {
		return "", 0, false
	}
	p, err := hex.DecodeString(f[1])
	if err != nil {
		return "", 0, false
	}
	part, err = strconv.Atoi(f[2])
	return string(p), part, err == nil && part >= 0 && part < maxFiles
}

// ready tells systemd that the holder serves.
func (s *fdStore) ready() { s.notify("READY=1", nil) }

// put replaces what is stored under a name.
func (s *fdStore) put(name string, files []*os.File) {
	if s.address == "" {
		return
	}
	for part := range maxFiles {
		s.notify("FDSTOREREMOVE=1\nFDNAME="+storeName(name, part), nil)
	}
	for part, f := range files {
		s.notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+storeName(name, part), f)
	}
}

func (s *fdStore) notify(text string, f *os.File) {
	if s.address == "" {
		return
	}
	if err := sendDatagram(s.address, text, f); err != nil {
		s.log.Warn("systemd not notified", "err", err)
	}
}

// sendDatagram sends a text, and a descriptor unless f is nil, to a Unix socket.
func sendDatagram(address, text string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrUnix{Name: address} // a leading @ is the abstract name space, as for systemd
	if f == nil {
		return unix.Sendmsg(fd, []byte(text), nil, to, 0)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(held uintptr) { err = unix.Sendmsg(fd, []byte(text), unix.UnixRights(int(held)), to, 0) }); cerr != nil {
		return cerr
	}
	return err
}
