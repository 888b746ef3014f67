package volumes_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestVolumeTwoSpellings: volumes of one store that are mounted by URLs of two spellings go on beside each other for longer than a
// lease, and are found by either.
func TestVolumeTwoSpellings(t *testing.T) {
	t.Parallel()
	for name, spell := range map[string]func(t *testing.T) (config, one, two string){
		"a symbolic link": func(t *testing.T) (config, one, two string) {
			dir := t.TempDir()
			testbed.Must(t, os.Symlink("store", filepath.Join(dir, "link")))
			return volumeConfig, "file:" + dir + "/store", "file:" + dir + "/link/"
		},
		"two hosts, one without its region": func(t *testing.T) (config, one, two string) {
			srv := startS3(t, "minio")
			one = srv.url("spelled")
			two = strings.Replace(strings.Replace(one, "127.0.0.1", "localhost", 1), "&region=us-east-1", "", 1)
			if len(one) <= len(two) || !strings.Contains(two, "localhost") {
				t.Fatalf("%s is spelled %s", one, two)
			}
			return volumeConfig + fmt.Sprintf("credentials = %q\n", srv.credentials), one, two
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, one, two := spell(t)
			s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
			var loads []*testbed.Load
			for name, url := range map[string]string{"first": one, "second": two} {
				snapctl(t, s, "volume", "create", "--store", one, name, "1G")
				mnt := filepath.Join(t.TempDir(), "mnt")
				snapctl(t, s, "volume", "mount", "--store", url, name, mnt)
				unmountIfFailed(t, mnt)
				loads = append(loads, testbed.StartLoad(t, mnt))
			}
			for end := time.Now().Add(awayFor); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				for _, l := range loads {
					l.MustRun(t)
				}
			}
			for _, l := range loads {
				l.MustReach(t, l.Count()+100)
				l.End(t)
			}
			for name, url := range map[string]string{"first": two, "second": one} {
				if out := snapctl(t, s, "volume", "inspect", "--store", url, name); !strings.Contains(out, "/dev/") {
					t.Errorf("inspect by the other URL:\n%s", out)
				}
				snapctl(t, s, "volume", "umount", name)
			}
			if out := snapctl(t, s, "volume", "ls"); strings.Count(out, "first") != 1 || strings.Count(out, "second") != 1 {
				t.Errorf("ls:\n%s", out)
			}
			for name, url := range map[string]string{"first": two, "second": one} {
				t.Log(strings.TrimSpace(snapctl(t, s, "volume", "fsck", "--store", url, name)))
				snapctl(t, s, "volume", "rm", "--store", url, name)
			}
		})
	}
}

// TestVolumeCopiedStore: a copy of a store is refused by name beside the original, which is what a volume's name goes on to mean.
func TestVolumeCopiedStore(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	store := newVolume(t, s, "data")
	dir := strings.TrimPrefix(store, "file:")
	dev := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data"))
	testbed.Tool(t, "cp", "-a", dir, dir+".backup")
	for _, verb := range [][]string{{"attach", "data"}, {"ls"}, {"rm", "data"}, {"fsck", "data"}, {"detach", "data"},
		{"umount", "data"}, {"inspect", "data"}, {"resize", "data", "2G"}} {
		mustRefuse(t, s, "it is a copy of that store", append([]string{"volume", verb[0], "--store", store + ".backup"}, verb[1:]...)...)
	}
	if again := strings.TrimSpace(snapctl(t, s, "volume", "attach", "data")); again != dev {
		t.Errorf("attached as %s, was %s", again, dev)
	}
	snapctl(t, s, "volume", "detach", "data")
	mustBeRight(t, s, "data", store)
}

// TestVolumeSameNames: a name that volumes of two stores have is refused by every verb, which lists them, and the store chooses, however
// it is spelled. What takes a volume away chooses among those that are attached. Metrics tell the two apart.
func TestVolumeSameNames(t *testing.T) {
	t.Parallel()
	addr, err := testbed.FreeAddr()
	testbed.Must(t, err)
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig + "[metrics]\naddress = \"" + addr + "\"\n"})
	dir := t.TempDir()
	store := map[string]string{"a": newVolume(t, s, "data"), "b": newVolume(t, s, "data")}
	for name, url := range store {
		snapctl(t, s, "volume", "mount", "--store", url, "data", filepath.Join(dir, name))
		testbed.Must(t, os.WriteFile(filepath.Join(dir, name, "of"), []byte(name), 0o600))
	}
	for _, verb := range [][]string{{"umount", "data"}, {"detach", "data"}, {"mount", "data", dir + "/c"}, {"attach", "data"},
		{"inspect", "data"}, {"resize", "data", "2G"}, {"rm", "data"}, {"rm", "--dry-run", "data"}, {"fsck", "data"}, {"create", "data", "1G"}} {
		_, err := s.Snapctl(t.Context(), append([]string{"volume"}, verb...)...)
		if err == nil {
			t.Errorf("%s was done to one of two", verb)
			continue
		}
		for name, url := range store {
			for _, part := range []string{"volume data: several volumes have this name; choose one with --store: ", url + " (id ",
				" on " + filepath.Join(dir, name)} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: %v; want %q", verb, err, part)
				}
			}
		}
	}
	out := snapctl(t, s, "volume", "ls", "--json")
	if strings.Count(out, `"mount_points"`) != 2 || !strings.Contains(out, filepath.Join(dir, "a")) {
		t.Errorf("ls does not say where they are mounted:\n%s", out)
	}
	resp, err := http.Get("http://" + addr + "/metrics")
	testbed.Must(t, err)
	testbed.Must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		t.Errorf("metrics: %s", resp.Status)
	}
	link := filepath.Join(dir, "link")
	testbed.Must(t, os.Symlink(strings.TrimPrefix(store["a"], "file:"), link))
	snapctl(t, s, "volume", "umount", "--store", "file:"+link+"/", "data")
	if p, err := os.ReadFile(filepath.Join(dir, "b", "of")); err != nil || string(p) != "b" {
		t.Errorf("the other one has %q, %v", p, err)
	}
	mustRefuse(t, s, "several volumes have this name", "volume", "inspect", "data")
	snapctl(t, s, "volume", "umount", "data") // of the one that is attached
	if left, err := testbed.MountsUnder(dir); err != nil || len(left) > 0 {
		t.Errorf("mounts left: %v, %v", left, err)
	}
	mustRefuse(t, s, "several volumes have this name", "volume", "rm", "data")
	snapctl(t, s, "volume", "rm", "--store", "file:"+link, "data")
	mustBeRight(t, s, "data", store["b"]) // it is the only one now
}

// TestVolumeCopiedRoot: a second remorad of the machine with a copy of a root does not start, and says whose node it would be. The first
// one's mounted volume goes on.
func TestVolumeCopiedRoot(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	mnt := filepath.Join(t.TempDir(), "mnt")
	store := newVolume(t, s, "data")
	snapctl(t, s, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	l := testbed.StartLoad(t, mnt)
	l.MustReach(t, 200)
	dir := t.TempDir()
	root := filepath.Join(dir, "copy")
	testbed.Must(t, os.Mkdir(root, 0o700))
	// But a spare journal, which comes and goes meanwhile.
	testbed.Tool(t, "sh", "-c", `tar -C "$1" --exclude "spare*" -c volumes | tar -C "$2" -x`, "sh", s.Root, root)
	config := filepath.Join(dir, "config.toml")
	testbed.Must(t, os.WriteFile(config, []byte(volumeConfig), 0o600))
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	remorad := filepath.Join(testbed.Repo(), "bin", "remorad")
	out, err := exec.CommandContext(ctx, remorad, "--holder", "none", "--config", config, "--root", root, "--address",
		filepath.Join(dir, "remora.sock")).CombinedOutput()
	var ended *exec.ExitError
	if want := "is served already, by process"; !errors.As(err, &ended) || !strings.Contains(string(out), want) ||
		!strings.Contains(string(out), s.Root) {
		t.Errorf("a remorad with a copied root: %v, want %q and %s: %s", err, want, s.Root, out)
	}
	for end := time.Now().Add(awayFor); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		l.MustRun(t)
	}
	l.MustReach(t, l.Count()+100)
	mustComeBack(t, s, mnt, l.End(t))
	mustBeRight(t, s, "data", store)
}
