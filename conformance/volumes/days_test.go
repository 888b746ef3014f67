package volumes_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestVolumeDays: the commands of an operator's days in docs/operations.md do what is said there, in their order. Directories of the
// machine are ones of the test.
func TestVolumeDays(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: volumeConfig})
	doc, err := os.ReadFile(filepath.Join(testbed.Repo(), "docs/operations.md"))
	testbed.Must(t, err)
	blocks := regexp.MustCompile("(?s)```sh day\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
	if len(blocks) < 7 {
		t.Fatalf("only %d blocks of commands were found", len(blocks))
	}
	places := []string{"/var/lib/remora", s.Root}
	for _, dir := range []string{"/var/lib/volumes", "/var/lib/backups", "/mnt", "/media"} {
		places = append(places, dir, filepath.Join(t.TempDir(), filepath.Base(dir)))
	}
	here := strings.NewReplacer(places...)
	t.Cleanup(func() {
		for _, dir := range []string{"/mnt", "/media"} {
			if t.Failed() {
				_ = unix.Unmount(here.Replace(dir), unix.MNT_DETACH)
			}
		}
	})
	greetings := 0
	for _, b := range blocks {
		cmd := exec.CommandContext(t.Context(), "sh", "-euxc", here.Replace(b[1]))
		cmd.Env = append(os.Environ(), s.SnapctlEnv()...)
		out, err := cmd.CombinedOutput()
		t.Logf("%s\n%s", b[1], out)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(b[1], "cat ") && strings.Contains(string(out), "\nhello\n") {
			greetings++
		}
	}
	if greetings != 2 {
		t.Errorf("the file was read %d times", greetings)
	}
	for _, name := range []string{"pgdata", "pgdata-copy"} {
		snapctl(t, s, "volume", "rm", name)
	}
}
