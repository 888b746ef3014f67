package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/remora-storage/remora/blockdev/holder"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/version"
)

// Who keeps mounts alive.
const (
	holderAuto     = "auto"
	holderExternal = "external"
	holderNone     = "none"
)

// theHolder is the connection to the root's holder, or none.
type theHolder struct{ client *holder.Client }

func (h *theHolder) keeper() holder.Keeper {
	if h.client == nil {
		return nil
	}
	return h.client
}

func (h *theHolder) pid() int {
	if h.client == nil {
		return 0
	}
	return h.client.PID()
}

func (h *theHolder) close() error {
	if h.client == nil {
		return nil
	}
	return h.client.Close()
}

// connectHolder finds or starts the holder, and returns what it has kept.
func connectHolder(f flags, log *slog.Logger) (*theHolder, map[string][]*os.File, error) {
	opts := holder.ClientOptions{Root: f.root, Text: version.String(), Log: log}
	switch f.holder {
	case holderAuto:
		opts.Start = func() error { return startHolder(f.root) }
	case holderExternal:
	case holderNone:
		return &theHolder{}, nil, nil
	default:
		return nil, nil, cli.Usagef("--holder %q: want auto, external or none", f.holder)
	}
	c, kept, err := holder.Connect(opts)
	if err != nil {
		return nil, nil, err
	}
	log.Info("holder is there", "pid", c.PID(), "keeps", len(kept))
	return &theHolder{client: c}, kept, nil
}

const holderLog = "holder.log" // in the root

// startHolder starts a holder that outlives this process: in a session of its own, and in a
// control group of its own if that is possible (see ownGroup).
func startHolder(root string) error {
	out, err := os.OpenFile(filepath.Join(root, holderLog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	c := exec.Command("/proc/self/exe", "holder", "--root", root)
	c.Args[0] = os.Args[0]
	c.Stdout, c.Stderr = out, out
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Env = append(os.Environ(), "NOTIFY_SOCKET=") // that is ours
	if err := c.Start(); err != nil {
		return err
	}
	go func() { _ = c.Wait() }() // it is nobody's business how it ends; only a zombie would stay
	return nil
}

// hold is the holder's process.
func hold(ctx context.Context, f flags, stderr io.Writer) error {
	log, err := newLog(f.logLevel, stderr)
	if err != nil {
		return err
	}
	root, err := filepath.Abs(f.root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o700); err != nil { // it may be here before remorad is
		return err
	}
	if os.Getenv("INVOCATION_ID") == "" { // systemd has given it one
		leave, err := ownGroup(root)
		if err != nil {
			log.Info("in remorad's control group: what kills that as a whole kills both", "reason", err)
		} else {
			defer func() {
				if err := leave(); err != nil {
					log.Warn("the holder's control group stays", "err", err)
				}
			}()
		}
	}
	spareFromOOM(log) // now that it is in its own group
	// A signal does not end what mounts depend on: those who want them to end run snapctl detach --all.
	return holder.Serve(ctx, holder.Options{Root: root, Text: version.String(), Log: log})
}

// ownGroup moves this process into a control group of its own, beside the one it is in. leave moves
// it to the one above, and removes the group.
func ownGroup(root string) (leave func() error, err error) {
	p, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(root))
	for line := range strings.Lines(string(p)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		mount, err := unifiedGroups()
		if err != nil {
			return nil, err
		}
		above := filepath.Join(mount, filepath.Dir(path))
		dir := filepath.Join(above, "remora-holder-"+hex.EncodeToString(sum[:4]))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		return func() error { return errors.Join(enterGroup(above), os.Remove(dir)) }, enterGroup(dir)
	}
	return nil, fmt.Errorf("no unified control groups")
}

// enterGroup moves this process into a control group.
func enterGroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// unifiedGroups returns where control groups of version 2 are mounted.
func unifiedGroups() (string, error) {
	all, err := mounts.Own()
	if err != nil {
		return "", err
	}
	for _, m := range all {
		if m.Type == "cgroup2" {
			return m.Dir, nil
		}
	}
	return "", fmt.Errorf("control groups of version 2 are not mounted")
}

// inPod reports whether what ends this process is likely to end its holder too: in a PID namespace
// that is not the machine's, or in Kubernetes.
func inPod() bool {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO of <linux/proc_ns.h>
	ns, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && ns != initial || os.Getenv("KUBERNETES_SERVICE_HOST") != ""
}
