package images_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestPrivateRegistry: without credentials a pull says so; with --user it is lazy, and remorad
// can go on fetching after it was killed.
func TestPrivateRegistry(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Auth: true})
	layout, err := testbed.Python.Layout(t.Context())
	testbed.Must(t, err)
	lazy := s.Ref("private/python:lazy")
	password := func(name, text string) (file string) {
		file = filepath.Join(t.TempDir(), name)
		testbed.Must(t, os.WriteFile(file, []byte(text+"\n"), 0o600))
		return file
	}
	right, wrong := password("right", testbed.Password), password("wrong", "wrong")
	_, err = s.Snapctl(t.Context(), "convert", "--user", testbed.User, "--password-file", right, "oci:"+layout+":src", lazy)
	testbed.Must(t, err)
	for _, args := range [][]string{{"pull", lazy}, {"pull", "--user", testbed.User, "--password-file", wrong, lazy}} {
		if out, err := s.Snapctl(t.Context(), args...); err == nil {
			t.Errorf("%v: %s", args, out)
		}
	}
	_, err = s.Snapctl(t.Context(), "pull", "--user", testbed.User, "--password-file", right, lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 3, testbed.BestBackend)
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	testbed.RunImage(t, s, lazy, "c", "remora", testbed.Python)
	log, err := os.ReadFile(s.RemoradLog())
	testbed.Must(t, err)
	if strings.Contains(string(log), testbed.Password) {
		t.Error("the password is in remorad's log")
	}
	st, err := os.Stat(filepath.Join(s.Root, "logins.json"))
	testbed.Must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("logins.json has mode %v", st.Mode())
	}
}
