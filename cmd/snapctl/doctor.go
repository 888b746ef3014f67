package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/cmd/internal/version"
)

// finding is one check's result.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warning, failure
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

const (
	ok      = "ok"
	warning = "warning"
	failure = "failure"
)

func (a *app) doctorCommand() *cobra.Command {
	var configPath, name string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check the kernel, containerd's configuration and remorad's",
		Long: `doctor checks that lazy images can work on this machine. It looks at what the kernel has, whether
remorad runs, and which back end it found. It asks whether containerd knows remorad and tells it
which image a layer belongs to, and whether both have the same proxies. It names layers and
snapshots that are broken, and the images that cannot be exported yet, since their layers are in the
registry alone. It prints what to change, and exits with 1 if something must be.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context(), configPath, name) },
	}
	c.Flags().StringVar(&configPath, "containerd-config", "/etc/containerd/config.toml", "containerd's configuration `file`")
	c.Flags().StringVar(&name, "snapshotter", "remora", "containerd's `name` for the snapshotter")
	return c
}

func (a *app) doctor(ctx context.Context, configPath, name string) error {
	all := kernelFindings()
	status, found := a.remoraFindings(ctx)
	all = append(all, found...)
	all = append(all, a.containerdFindings(ctx, name, status)...)
	all = append(all, configFindings(configPath, name)...)
	failed := 0
	for _, f := range all {
		if f.Result == failure {
			failed++
		}
	}
	if err := a.print(map[string]any{"findings": all, "failures": failed}, func(w io.Writer) {
		for _, f := range all {
			fmt.Fprintf(w, "%-8s %s: %s\n", f.Result, f.Check, f.Detail)
			if f.Fix != "" {
				fmt.Fprintf(w, "         %s\n", strings.ReplaceAll(f.Fix, "\n", "\n         "))
			}
		}
	}); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d checks failed", failed)
	}
	return nil
}

const requestTimeout = "/proc/sys/fs/fuse/default_request_timeout"

func kernelFindings() []finding {
	var all []finding
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		release := string(bytes.TrimRight(u.Release[:], "\x00"))
		var major, minor int
		_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor) // zeros are judged below
		f := finding{Check: "kernel", Result: ok, Detail: release}
		switch v := major*100 + minor; {
		case v < 516:
			f.Result, f.Fix = failure, "lazy images need Linux 5.16 or later (EROFS with what our images use, overlay on it)"
		case v < 612:
			f.Detail += ": EROFS needs a loop device between (back end fuse-loop); from 6.12 it does not"
		case v < 614:
			f.Detail += ": no pre-content events (back end precontent); they come with 6.14"
		}
		all = append(all, f)
	}
	if p, err := os.ReadFile(requestTimeout); err == nil && strings.TrimSpace(string(p)) != "0" {
		all = append(all, finding{Check: requestTimeout, Result: warning, Detail: "a FUSE request that waits longer than " +
			strings.TrimSpace(string(p)) + " s ends its mount: a registry that does not answer would do that",
			Fix: "sysctl -w fs.fuse.default_request_timeout=0"})
	}
	p, err := os.ReadFile("/proc/filesystems")
	for _, fs := range []string{"erofs", "overlay", "fuse"} {
		f := finding{Check: "file system " + fs, Result: ok, Detail: "known to the kernel"}
		if err != nil || !slices.Contains(strings.Fields(string(p)), fs) {
			f = finding{Check: f.Check, Result: warning, Detail: "not loaded", Fix: "modprobe " + fs +
				"  (and list it in /etc/modules-load.d/remora.conf)"}
		}
		all = append(all, f)
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		f := finding{Check: dev, Result: ok, Detail: "present"}
		if _, err := os.Stat(dev); err != nil {
			f = finding{Check: dev, Result: warning, Detail: err.Error(), Fix: "modprobe " +
				strings.TrimSuffix(strings.TrimPrefix(dev, "/dev/"), "-control")}
		}
		all = append(all, f)
	}
	return all
}

func (a *app) remoraFindings(ctx context.Context) (*control.StatusReply, []finding) {
	remora, closer, err := a.dialRemora()
	if err != nil {
		return nil, []finding{{Check: "remorad", Result: failure, Detail: err.Error()}}
	}
	defer closer.Close()
	st, err := remora.Status(ctx)
	if err != nil {
		return nil, []finding{{Check: "remorad", Result: failure, Detail: control.Explain(err, a.remora).Error(), Fix: "systemctl start remorad"}}
	}
	all := []finding{{Check: "remorad", Result: ok, Detail: st.Version + " on " + a.remora}}
	b := finding{Check: "back end", Result: ok, Detail: st.Backend.Name + " (" + st.Backend.Reason + ")"}
	if st.Backend.Name == "" {
		b = finding{Check: "back end", Result: failure, Detail: st.Backend.Reason,
			Fix: "every layer takes the ordinary path until the kernel has EROFS or FUSE in one of the ways that the reason names"}
	}
	all = append(all, b)
	if !st.Backend.Direct {
		all = append(all, finding{Check: "complete layers", Result: warning, Detail: "need a loop device: " + st.Backend.DirectReason,
			Fix: "put --root on ext4, xfs or btrfs, with Linux 6.12 or later"})
	}
	h := finding{Check: "holder", Result: ok, Detail: fmt.Sprintf("process %d keeps mounts alive while remorad is not there", st.Holder.PID)}
	if st.Holder.PID == 0 {
		h = finding{Check: h.Check, Result: warning, Detail: "none: mounts of incomplete layers end with remorad",
			Fix: "start remorad without --holder none"}
	}
	all = append(all, h)
	for _, b := range st.Broken {
		f := finding{Check: "container " + cmp.Or(b.Container, b.Mounted), Result: warning, Detail: b.Reason, Fix: "start that container again"}
		if b.Container == "" && b.Mounted == "" {
			f.Check, f.Fix = "snapshot "+b.Snapshot, "remove the container or the image that was made of it; build or load that again"
		}
		all = append(all, f)
	}
	for _, l := range st.Layers {
		if l.State == "failed" || l.State == "quarantined" {
			all = append(all, finding{Check: "layer " + short(l.Digest) + " of " + l.Image, Result: warning, Detail: l.State + ": " + l.Reason,
				Fix: "snapctl repair " + l.Image})
		}
	}
	for _, d := range st.Damaged {
		all = append(all, finding{Check: "file " + d.File, Result: warning, Detail: "was damaged, and is " + d.Aside + " now; lost: " + d.Lost,
			Fix: d.Advice})
	}
	c := finding{Check: "cache", Result: ok, Detail: size(st.Cache.Bytes) + " of " + size(st.Cache.Limit)}
	if st.Cache.Limit > 0 && st.Cache.Bytes > st.Cache.Limit/10*9 {
		c.Result, c.Fix = warning, "the cache is nearly full: raise [cache] limit or remove images"
	}
	return st, append(all, c)
}

func (a *app) containerdFindings(ctx context.Context, name string, st *control.StatusReply) []finding {
	ctx, c, err := a.dialContainerd(ctx)
	if err != nil {
		return []finding{{Check: "containerd", Result: failure, Detail: err.Error()}}
	}
	defer c.Close()
	v, err := c.Version(ctx)
	if err != nil {
		return []finding{{Check: "containerd", Result: failure, Detail: fmt.Sprintf("does not answer on %s: %v", a.containerd, err),
			Fix: "systemctl start containerd, or --address SOCKET"}}
	}
	all := []finding{{Check: "containerd", Result: ok, Detail: v.Version}}
	all = append(all, pluginFindings(ctx, c, name, v.Version, st)...)
	if st != nil {
		all = append(all, proxyFinding(a.containerd, a.remora))
	}
	return append(all, a.exportFinding(ctx, c))
}

func pluginFindings(ctx context.Context, c *client.Client, name, containerd string, st *control.StatusReply) []finding {
	reply, err := c.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1,id=="+name)
	if err != nil {
		return []finding{{Check: "containerd's plugins", Result: failure, Detail: err.Error()}}
	}
	snippet := "add what \"remorad containerd-config\" prints to containerd's configuration and restart containerd"
	for _, p := range reply.Plugins {
		if p.Type != "io.containerd.snapshotter.v1" || p.ID != name {
			continue
		}
		all := []finding{{Check: "proxy plugin " + name, Result: ok, Detail: "known to containerd"}}
		if p.InitErr != nil {
			all[0] = finding{Check: all[0].Check, Result: failure, Detail: p.InitErr.Message, Fix: snippet}
		}
		if st != nil && p.Exports["root"] != st.Root {
			all = append(all, finding{Check: "exports.root", Result: warning,
				Detail: fmt.Sprintf("%q, but remorad's root is %q", p.Exports["root"], st.Root),
				Fix:    "kubelet would watch the wrong disk: set [proxy_plugins." + name + ".exports] root = \"" + st.Root + "\""})
		}
		if p.Exports["enable_remote_snapshot_annotations"] != "true" {
			all = append(all, finding{Check: "annotations", Result: warning,
				Detail: "containerd's transfer service does not tell remorad which image a layer belongs to",
				Fix:    "set [proxy_plugins." + name + ".exports] enable_remote_snapshot_annotations = \"true\""})
		}
		if slices.Contains(p.Capabilities, "rebase") {
			all = append(all, finding{Check: "capabilities", Result: failure, Detail: "rebase is declared",
				Fix: "remove \"rebase\" from the plugin's capabilities: lazy layers need their parents"})
		}
		if st != nil {
			all = append(all, idmapFinding(p.Capabilities, name, containerd, st.Backend))
		}
		return all
	}
	return []finding{{Check: "proxy plugin " + name, Result: failure, Detail: "containerd does not know it", Fix: snippet}}
}

// idmapFinding checks what containerd does for containers in user namespaces against what the back
// end can, and this version of containerd.
func idmapFinding(declared []string, name, containerd string, b control.Backend) finding {
	if b.IDMap && !version.MapsMounts(containerd) {
		b.IDMap, b.IDMapReason = false, "containerd "+containerd+" shows them remote layers as empty; 2.3 and later do not"
	}
	f := finding{Check: "user namespaces", Result: ok, Detail: "layers are shared by idmapped mounts"}
	want := "remap-ids"
	if !b.IDMap {
		want = "only-remap-ids"
		f.Detail = "containers in user namespaces are refused: " + b.IDMapReason
	}
	if slices.Contains(declared, want) && (b.IDMap || !slices.Contains(declared, "remap-ids")) {
		return f
	}
	f.Result, f.Fix = warning, "set [proxy_plugins."+name+"] capabilities = [\""+want+"\"] in containerd's configuration and restart "+
		"containerd"
	switch {
	case b.IDMap:
		f.Detail = "containerd copies the whole image for each container in a user namespace: remap-ids is not declared"
	case slices.Contains(declared, "remap-ids"):
		f.Result = failure
		f.Detail = "remap-ids is declared, and cannot be done: " + b.IDMapReason
	default:
		f.Detail = "containerd copies the whole image for each container in a user namespace, since nothing is declared: " + b.IDMapReason
	}
	return f
}

// configFindings reads what containerd does not tell over its socket.
func configFindings(path, name string) []finding {
	p, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return []finding{{Check: path, Result: warning, Detail: "not there, so what follows from it is not checked",
			Fix: "name the file with --containerd-config"}}
	}
	var cfg struct {
		Plugins map[string]struct {
			Snapshotter  string `toml:"snapshotter"`
			UnpackConfig []struct {
				Snapshotter string `toml:"snapshotter"`
			} `toml:"unpack_config"`
		} `toml:"plugins"`
	}
	if err == nil {
		err = toml.Unmarshal(p, &cfg)
	}
	if err != nil {
		return []finding{{Check: path, Result: warning, Detail: err.Error()}}
	}
	transfer := finding{Check: "transfer service", Result: warning, Detail: "does not unpack for " + name +
		": ctr images pull --snapshotter " + name + " and CRI's pulls fail",
		Fix: "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux/amd64\"\n  snapshotter = \"" + name + "\""}
	for _, u := range cfg.Plugins["io.containerd.transfer.v1.local"].UnpackConfig {
		if u.Snapshotter == name {
			transfer = finding{Check: "transfer service", Result: ok, Detail: "unpacks for " + name}
		}
	}
	cri := finding{Check: "Kubernetes (CRI)", Result: ok, Detail: "uses " + name}
	if got := cfg.Plugins["io.containerd.cri.v1.images"].Snapshotter; got != name {
		cri = finding{Check: cri.Check, Result: warning, Detail: "does not use " + name + " (that is fine without Kubernetes)",
			Fix: "[plugins.\"io.containerd.cri.v1.images\"]\n  snapshotter = \"" + name + "\"\n  disable_snapshot_annotations = false"}
	}
	return []finding{transfer, cri}
}
