package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/remora-storage/remora/internal/peer"
)

// proxyVariables say which proxies Go's programs use, both of them among these, as golang.org/x/net/http/httpproxy has them. The
// name in capitals goes before the other.
var proxyVariables = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

// proxyFinding compares the proxies that containerd and remorad have been given. A registry that containerd reaches by a proxy is out
// of remorad's reach without it: images are pulled, but nothing is lazy.
func proxyFinding(containerd, remora string) finding {
	const check = "proxies"
	theirs, err := environOf(containerd)
	ours, oerr := environOf(remora)
	if err := errors.Join(err, oerr); err != nil {
		return finding{Check: check, Result: warning, Detail: "not compared: " + err.Error(), Fix: "run doctor as root, while both daemons run"}
	}
	var differ, lines []string
	for _, name := range proxyVariables {
		want, got := proxyOf(theirs, name), proxyOf(ours, name)
		if want == got {
			continue
		}
		differ = append(differ, fmt.Sprintf("%s is %q for containerd and %q for remorad", name, withoutPassword(want), withoutPassword(got)))
		lines = append(lines, fmt.Sprintf("Environment=\"%s=%s\"", name, withoutPassword(want)))
	}
	if len(differ) == 0 {
		return finding{Check: check, Result: ok, Detail: "containerd and remorad have the same"}
	}
	return finding{Check: check, Result: warning, Detail: strings.Join(differ, "; "),
		Fix: "give remorad what containerd has: systemctl edit remorad, then restart it\n[Service]\n" + strings.Join(lines, "\n")}
}

// proxyOf returns a variable's value in an environment.
func proxyOf(environ []string, name string) string {
	for _, spelled := range []string{name, strings.ToLower(name)} {
		i := slices.IndexFunc(environ, func(v string) bool { return strings.HasPrefix(v, spelled+"=") })
		if i >= 0 && environ[i] != spelled+"=" {
			return environ[i][len(spelled)+1:]
		}
	}
	return ""
}

// withoutPassword hides the password in a proxy's URL.
func withoutPassword(proxy string) string {
	if u, err := url.Parse(proxy); err == nil && u.User != nil {
		return u.Redacted()
	}
	return proxy
}

// environOf returns the environment of the process that listens on a Unix socket.
func environOf(socket string) ([]string, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	cred, err := peer.Of(conn.(*net.UnixConn))
	if err != nil {
		return nil, fmt.Errorf("who listens on %s: %w", socket, err)
	}
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", cred.Pid))
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimRight(string(p), "\x00"), "\x00"), nil
}
