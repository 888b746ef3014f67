package images_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// A door is the way to the stack's registry of a client that has the password of now.
type door struct {
	host     string
	password atomic.Pointer[string]
}

// newDoor refuses those with another password by a status, and asks the others for one.
func newDoor(t *testing.T, s *testbed.Stack, refusal int) *door {
	t.Helper()
	d, pass := new(door), registryHandler(s)
	d.become("first")
	d.host = serveAt(t, "127.0.0.1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch name, password, given := r.BasicAuth(); {
		case given && name == testbed.User && password == *d.password.Load():
			pass.ServeHTTP(w, r)
		case given:
			w.WriteHeader(refusal)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	testbed.Must(t, s.PlainHTTP(d.host, d.host))
	return d
}

func (d *door) become(password string) { d.password.Store(&password) }

// pull pulls an image by snapctl, with the password of now.
func (d *door) pull(t *testing.T, s *testbed.Stack, ref string) {
	t.Helper()
	env := append(s.SnapctlEnv(), "SNAPCTL_PASSWORD="+*d.password.Load())
	_, err := testbed.Output(t.Context(), env, "snapctl", "pull", "--user", testbed.User, ref)
	testbed.Must(t, err)
}

// byCtr runs ctr with the password of now, which remorad is not told.
func (d *door) byCtr(t *testing.T, s *testbed.Stack, ref string, args ...string) {
	t.Helper()
	_, err := s.Ctr(t.Context(), append(args, "--hosts-dir", s.HostsDir, "--user", testbed.User+":"+*d.password.Load(), ref)...)
	testbed.Must(t, err)
}

// TestAccessWithdrawn: a registry no longer takes the credentials by which layers were claimed. Reads of what is not here fail or wait, as
// [fetch] says, also after remorad was killed. No image is removed for that, though an operator asks for it. All is read once remorad has
// credentials again, by the next pull, or once a client that has them has brought the blobs.
func TestAccessWithdrawn(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	m := &matrix{s: s}
	refusals := map[string]int{"401": http.StatusUnauthorized, "403": http.StatusForbidden}
	mends := map[string]func(t *testing.T, d *door, ref string){
		"a pull by snapctl": func(t *testing.T, d *door, ref string) { d.pull(t, s, ref) },
		"blobs by ctr":      func(t *testing.T, d *door, ref string) { d.byCtr(t, s, ref, "content", "fetch") },
	}
	cases := testbed.Covering(t, testbed.Combinations(sortedKeys(refusals), []string{"eio", "wait"}, sortedKeys(mends)))
	var doors []*door
	for i, c := range cases {
		doors = append(doors, newDoor(t, s, refusals[c[0]]))
		s.Configure(fmt.Sprintf("[fetch.for.%q]\nunreachable = %q\ndeadline = \"2s\"\n", doors[i].host, c[1]))
	}
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	for i, c := range cases {
		t.Run(strings.Join(c, ", "), func(t *testing.T) {
			m.withdrawn(t, doors[i], c[1] == "wait", mends[c[2]])
		})
	}
}

// withdrawn has a door closed behind two images, one in use and one not, and opened again.
func (m *matrix) withdrawn(t *testing.T, d *door, waits bool, mend func(*testing.T, *door, string)) {
	t.Helper()
	s, used, unused := m.s, m.guarded(t, d), m.guarded(t, d)
	root := testbed.MountImage(t, s, used.ref, "remora")
	d.become("second")
	ended := make(chan error, 1)
	if waits {
		defer d.become("first") // so that it ends
		go func() { ended <- used.readSome(root) }()
		testbed.WaitFor(t, "the read to wait", func() bool {
			st, err := s.Status(t.Context())
			testbed.Must(t, err)
			return len(st.Waiting) > 0
		})
	} else if err := used.readSome(root); !errors.Is(err, syscall.EIO) {
		t.Errorf("withdrawn: %v, want EIO", err)
	}
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	if !waits {
		if err := used.readSome(root); !errors.Is(err, syscall.EIO) {
			t.Errorf("withdrawn, after a kill: %v, want EIO", err)
		}
		if out, err := s.Snapctl(t.Context(), "repair", "--release", used.ref); err == nil {
			t.Errorf("repaired or released while in use: %s", out)
		}
	}
	if out, err := s.Snapctl(t.Context(), "repair", "--release", unused.ref); err == nil {
		t.Errorf("repaired or released: %s", out)
	}
	d.byCtr(t, s, unused.ref, "images", "pull", "--snapshotter", "remora") // containerd has all snapshots
	names, err := s.Ctr(t.Context(), "images", "ls", "-q")
	testbed.Must(t, err)
	for _, im := range []*guardedImage{used, unused} {
		if !strings.Contains(names, im.ref) {
			t.Errorf("image %s was removed", im.ref)
		}
	}
	select {
	case err := <-ended:
		t.Errorf("a read that was to wait has ended: %v", err)
	default:
	}
	mend(t, d, used.ref)
	mend(t, d, unused.ref)
	if waits {
		testbed.Must(t, <-ended)
	}
	for im, root := range map[*guardedImage]string{used: root, unused: testbed.MountImage(t, s, unused.ref, "remora")} {
		testbed.WaitFor(t, "everything of "+im.ref+" to be read", func() bool { return im.readAll(root) == nil })
	}
}

// A guardedImage is an image behind a door, with what it has: sizes of files by their seeds.
type guardedImage struct {
	ref    string
	layers map[uint64]int64
	large  uint64
}

// guarded pulls a new image through a door. It is read by parts.
func (m *matrix) guarded(t *testing.T, d *door) *guardedImage {
	t.Helper()
	for try := 0; ; try++ {
		name, layers := m.imageOf(t, "lazy", 5<<20)
		im := &guardedImage{ref: d.host + "/" + name, layers: layers, large: m.seeds - 1}
		d.pull(t, m.s, im.ref)
		how := suppliedBy(t, m.s, im.ref, len(layers))
		if how == matrixKinds["lazy"] {
			return im
		}
		if try == 20 {
			t.Fatalf("layers are %s", how)
		}
		removeAll(t, m.s, im.ref) // on a busy machine a table may come late
		time.Sleep(time.Second)
	}
}

// readSome reads from the midst of the large file, of which nothing was read before.
func (im *guardedImage) readSome(root string) error {
	f, err := os.Open(filepath.Join(root, fmt.Sprint("file-", im.large)))
	if err != nil {
		return err
	}
	defer f.Close() // only read
	got := make([]byte, 64<<10)
	const at = 1 << 20
	if _, err := f.ReadAt(got, at); err != nil {
		return err
	}
	if !bytes.Equal(got, randomBytes(im.large, im.layers[im.large])[at:][:len(got)]) {
		return errors.New("wrong bytes")
	}
	return nil
}

func (im *guardedImage) readAll(root string) error {
	for seed, size := range im.layers {
		got, err := os.ReadFile(filepath.Join(root, fmt.Sprint("file-", seed)))
		if err == nil && !bytes.Equal(got, randomBytes(seed, size)) {
			err = fmt.Errorf("wrong bytes of file %d", seed)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
