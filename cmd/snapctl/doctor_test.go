package main

import (
	"testing"

	"github.com/remora-storage/remora/cmd/internal/cmdtest"
)

// findings runs doctor and returns what it found, by check. It fails if a check failed, which is none of findings' concern.
func findings(u *user, args ...string) map[string]finding {
	u.t.Helper()
	r := u.run(append([]string{"--json", "doctor"}, args...)...)
	failed := r.err != nil
	r.err = nil
	got := decode[struct {
		Findings []finding
		Failures int
	}](r)
	if failed != (got.Failures > 0) {
		u.t.Errorf("%d failures, and the command failed: %v", got.Failures, failed)
	}
	all := map[string]finding{}
	for _, f := range got.Findings {
		all[f.Check] = f
		if f.Result != ok && f.Fix == "" && f.Detail == "" {
			u.t.Errorf("%s says nothing", f.Check)
		}
	}
	return all
}

// TestDoctorWithoutDaemons says what is not there, and what to do.
func TestDoctorWithoutDaemons(t *testing.T) {
	u := newUser(t)
	r := u.hurried("doctor", "--containerd-config", u.path("none.toml"))
	r.fails(1, "checks failed")
	contains(t, r.stdout, "failure  remorad: remorad does not answer on "+u.remorad, "systemctl start remorad",
		"failure  containerd: does not answer on "+u.containerd, "systemctl start containerd",
		"warning  "+u.path("none.toml")+": not there", "kernel: ", "file system overlay", "/dev/fuse")
}

// TestDoctorContainerd reads containerd's configuration from its socket and its file.
func TestDoctorContainerd(t *testing.T) {
	u := newUser(t)
	cmdtest.NewContainerd(t, u.containerd)
	right := u.file("right.toml", `
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "remora"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "remora"
`)
	all := findings(u, "--containerd-config", right)
	for _, check := range []string{"containerd", "proxy plugin remora", "transfer service", "Kubernetes (CRI)"} {
		if all[check].Result != ok {
			t.Errorf("%s: %+v", check, all[check])
		}
	}
	all = findings(u, "--containerd-config", u.file("empty.toml", ""), "--snapshotter", "other")
	for check, want := range map[string]string{"proxy plugin other": failure, "transfer service": warning, "Kubernetes (CRI)": warning} {
		if all[check].Result != want || all[check].Fix == "" {
			t.Errorf("%s: %+v, want %s", check, all[check], want)
		}
	}
	if bad := u.file("bad.toml", "[plugins"); findings(u, "--containerd-config", bad)[bad].Result != warning {
		t.Errorf("a file that is no TOML: %+v", findings(u, "--containerd-config", bad)[bad])
	}
}
