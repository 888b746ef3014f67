package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/testbed"
)

// oddLayer is a layer with every inode that a tar can hold, and a directory of many files.
func oddLayer(crowd int) func(*tar.Writer) error {
	when := time.Unix(1500000001, 0)
	return func(tw *tar.Writer) error {
		add := func(h tar.Header, body io.Reader) error {
			if h.ModTime.IsZero() {
				h.ModTime = when
			}
			h.Format = tar.FormatPAX
			if err := tw.WriteHeader(&h); err != nil {
				return fmt.Errorf("%.40s: %w", h.Name, err)
			}
			if h.Typeflag != tar.TypeReg {
				return nil
			}
			_, err := io.CopyN(tw, body, h.Size)
			return err
		}
		text := strings.NewReader
		x := func(kv ...string) map[string]string {
			m := map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				m["SCHILY.xattr."+kv[i]] = kv[i+1]
			}
			return m
		}
		list := []tar.Header{
			{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1777},
			{Name: "d/empty", Typeflag: tar.TypeReg, Mode: 0o600},
			{Name: "d/setuid", Typeflag: tar.TypeReg, Mode: 0o6755, Size: 6, Uid: 100000, Gid: 3000000000},
			{Name: "d/old", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1, ModTime: time.Unix(1, 0)},
			{Name: "d/future", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1, ModTime: time.Unix(4000000000, 0)},
			{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/setuid"},
			{Name: "hard2", Typeflag: tar.TypeLink, Linkname: "d/setuid"},
			{Name: "soft", Typeflag: tar.TypeSymlink, Linkname: "d/setuid", Mode: 0o777},
			{Name: "dangling", Typeflag: tar.TypeSymlink, Linkname: "/no/where/" + strings.Repeat("x", 3000), Mode: 0o777},
			{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
			{Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 70000},
			{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o622},
			{Name: strings.Repeat("é", 127) + "x", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3},
			{Name: "a b\tc\nd\"'\\", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3},
			{Name: "cap", Typeflag: tar.TypeReg, Mode: 0o755, Size: 2, PAXRecords: x("security.capability",
				"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
			{Name: "user-x", Typeflag: tar.TypeReg, Mode: 0o644, Size: 2, PAXRecords: x("user.one", "1", "user.two", strings.Repeat("2", 2000))},
			{Name: "d/xdir/", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 77, Gid: 78, PAXRecords: x("user.dir", "yes")},
			{Name: "d/xdir/sub/", Typeflag: tar.TypeDir, Mode: 0o750},
			{Name: "d/xdir/sub/file", Typeflag: tar.TypeReg, Mode: 0o640, Size: 5000},
			{Name: "gone", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
			{Name: "gone-dir/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "gone-dir/x", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
			{Name: "covered/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "covered/below", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
			{Name: "becomes-dir", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
			{Name: "becomes-file/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "becomes-file/x", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
			{Name: "twice", Typeflag: tar.TypeReg, Mode: 0o600, Size: 9},
			{Name: "twice", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
			{Name: "linkdir", Typeflag: tar.TypeSymlink, Linkname: "d", Mode: 0o777},
			{Name: "linkdir/through", Typeflag: tar.TypeReg, Mode: 0o644, Size: 7},
			{Name: "unlisted/a/b/c", Typeflag: tar.TypeReg, Mode: 0o644, Size: 2},
			{Name: "crowd/", Typeflag: tar.TypeDir, Mode: 0o755},
		}
		for _, h := range list {
			if err := add(h, text(strings.Repeat("content of "+h.Name, 1000))); err != nil {
				return err
			}
		}
		for i := range crowd {
			if err := add(tar.Header{Name: fmt.Sprintf("crowd/%06d", i), Typeflag: tar.TypeReg, Mode: 0o644}, nil); err != nil {
				return err
			}
		}
		return nil
	}
}

// overOddLayer changes what oddLayer made, without listing the directories on the way.
func overOddLayer(tw *tar.Writer) error {
	for _, h := range []tar.Header{
		{Name: ".wh.gone", Typeflag: tar.TypeReg},
		{Name: ".wh.gone-dir", Typeflag: tar.TypeReg},
		{Name: "covered/.wh..wh..opq", Typeflag: tar.TypeReg},
		{Name: "covered/above", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "becomes-dir/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "becomes-dir/x", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "becomes-file", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "d/xdir/sub/new", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "d/empty", Typeflag: tar.TypeReg, Mode: 0o755},
	} {
		h.ModTime = time.Unix(1600000000, 0)
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
	}
	return nil
}

// unlistedDirs have the time of unpacking.
func unlistedDirs(p string) bool {
	for _, d := range []string{"unlisted", "unlisted/a", "unlisted/a/b", "covered", "d", "d/xdir", "d/xdir/sub"} {
		if p == d {
			return true
		}
	}
	return false
}

// TestOddImage compares an image of odd inodes, through each back end that this kernel has, with
// what containerd unpacks.
func TestOddImage(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	for i, c := range testbed.Covering(t, testbed.Combinations(backends, []string{"estargz", "import"})) {
		backend, format := c[0], c[1]
		t.Run(backend+"/"+format, func(t *testing.T) {
			crowd := 5_000
			if i == 0 { // once is enough for the large directory
				crowd = testbed.Rounds(20_000, 100_000)
			}
			layout := filepath.Join(t.TempDir(), "layout")
			testbed.Must(t, testbed.WriteTars(layout, "src", oddLayer(crowd), overOddLayer))
			s := testbed.New(t, testbed.Options{Config: mountBy(backend), LogLevel: "info"})
			testbed.Must(t, s.Push(t.Context(), layout, "src", "odd:src"))
			ref := s.Ref("odd:src")
			if format == "estargz" {
				ref = s.Ref("odd:lazy")
				_, err := s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", ref)
				testbed.Must(t, err)
			}
			_, err := s.Snapctl(t.Context(), "pull", ref)
			testbed.Must(t, err)
			onlyFormat(t, s, ref, format)
			sameTree(t, s, ref, s.Ref("odd:src"), unlistedDirs)
			lazyLayers(t, s, 2, backend)
		})
	}
}

const (
	hugeSize = 4<<30 + 4097
	apart    = 1 << 20 // bytes from one stamp to the next
)

// stamped is the content of the huge file: zeros, but for the offset itself wherever a stamp is due.
type stamped struct{ at int64 }

func (s *stamped) Read(p []byte) (int, error) {
	due := s.at / apart * apart
	n := min(len(p), int(due+apart-s.at))
	clear(p[:n])
	if into := s.at - due; into < 8 {
		copy(p[:n], binary.BigEndian.AppendUint64(nil, uint64(due))[into:])
	}
	s.at += int64(n)
	return n, nil
}

// hugeLayer packs the huge file quickly: that takes the standard library ten times as long.
func hugeLayer(t *testing.T) testbed.Blob {
	t.Helper()
	var packed bytes.Buffer
	zw, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	testbed.Must(t, err)
	plain := digest.Canonical.Digester()
	tw := tar.NewWriter(io.MultiWriter(zw, plain.Hash()))
	testbed.Must(t, tw.WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Mode: 0o644, Size: hugeSize, Format: tar.FormatPAX}))
	_, err = io.CopyN(tw, new(stamped), hugeSize)
	testbed.Must(t, errors.Join(err, tw.Close(), zw.Close()))
	return testbed.Blob{MediaType: ocispec.MediaTypeImageLayerGzip, Data: packed.Bytes(), DiffID: plain.Digest()}
}

// TestHugeFile: a file of more than 4 GiB has its bytes where they belong, converted and imported.
func TestHugeFile(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, testbed.WriteBlobs(layout, "src", hugeLayer(t)))
	testbed.Must(t, s.Push(t.Context(), layout, "src", "huge:src"))
	_, err := s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", s.Ref("huge:lazy"))
	testbed.Must(t, err)
	const all = hugeSize/apart + 1
	var look []int64 // at which stamps
	for i := range testbed.Rounds(64, all) {
		look = append(look, int64(i)*all/int64(testbed.Rounds(64, all)))
	}
	look = append(look, 2047, 2048, 4095, 4096) // 2 GiB, 4 GiB
	for tag, format := range map[string]string{"lazy": "estargz", "src": "import"} {
		_, err := s.Snapctl(t.Context(), "pull", s.Ref("huge:"+tag))
		testbed.Must(t, err)
		onlyFormat(t, s, s.Ref("huge:"+tag), format)
		f, err := os.Open(filepath.Join(testbed.MountImage(t, s, s.Ref("huge:"+tag), "remora"), "huge"))
		testbed.Must(t, err)
		if n, err := f.Seek(0, io.SeekEnd); err != nil || n != hugeSize {
			t.Errorf("%s: %d bytes, %v, want %d", tag, n, err, int64(hugeSize))
		}
		for _, i := range look {
			at := max(0, i*apart-100)
			got, want := make([]byte, 200), make([]byte, 200)
			_, err := f.ReadAt(got, at)
			testbed.Must(t, err)
			_, err = io.ReadFull(&stamped{at}, want)
			testbed.Must(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: wrong bytes at %d", tag, at)
			}
		}
		testbed.Must(t, f.Close())
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		for _, l := range st.Layers {
			t.Logf("%s: %s, %d of %d bytes present", tag, l.Format, l.PresentBytes, l.TotalBytes)
		}
	}
}

// lazyLayers insists on the number of lazy layers and their back end. A layer that has become
// complete may be mounted directly. A pull may end before its layers are opened, and a layer become complete
// before it is direct, so that what is wanted may take a moment.
func lazyLayers(t *testing.T, s *testbed.Stack, n int, backend string) {
	t.Helper()
	var wrong []string
	for range 600 {
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		wrong = nil
		if len(st.Layers) != n {
			wrong = append(wrong, fmt.Sprintf("%d lazy layers, want %d", len(st.Layers), n))
		}
		for _, l := range st.Layers {
			if l.State != "mounted" || l.Backend != backend && l.Backend != "direct" {
				wrong = append(wrong, fmt.Sprintf("layer %s is %s by %q: %s", l.Digest, l.State, l.Backend, l.Reason))
			}
		}
		if wrong == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error(strings.Join(wrong, "\n"))
}

// TestImagesByOthers: one built by umoci and converted by us, one made eStargz by crane.
func TestImagesByOthers(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	dir := t.TempDir()
	layout := filepath.Join(dir, "umoci")
	umoci := func(args ...string) {
		t.Helper()
		_, err := testbed.Output(t.Context(), nil, "umoci", args...)
		testbed.Must(t, err)
	}
	base, err := testbed.Programs[2].Layout(t.Context())
	testbed.Must(t, err)
	umoci("init", "--layout", layout)
	_, err = testbed.Output(t.Context(), nil, "skopeo", "--insecure-policy", "copy", "oci:"+base+":src", "oci:"+layout+":img")
	testbed.Must(t, err)
	umoci("unpack", "--image", layout+":img", filepath.Join(dir, "bundle"))
	root := filepath.Join(dir, "bundle", "rootfs")
	testbed.Must(t, os.RemoveAll(filepath.Join(root, "usr/share/nginx")))
	testbed.Must(t, os.WriteFile(filepath.Join(root, "etc/added-by-umoci"), []byte("hello\n"), 0o640))
	testbed.Must(t, os.Symlink("added-by-umoci", filepath.Join(root, "etc/link")))
	umoci("repack", "--image", layout+":img", filepath.Join(dir, "bundle"))
	testbed.Must(t, s.Push(t.Context(), layout, "img", "others:umoci"))

	_, err = s.Snapctl(t.Context(), "convert", s.Ref("others:umoci"), s.Ref("others:ours"))
	testbed.Must(t, err)
	_, err = testbed.Output(t.Context(), nil, "crane", "optimize", "--insecure", s.Ref("others:umoci"), s.Ref("others:crane"))
	testbed.Must(t, err)
	for _, tag := range []string{"ours", "crane"} {
		t.Run(tag, func(t *testing.T) {
			_, err := s.Snapctl(t.Context(), "pull", s.Ref("others:"+tag))
			testbed.Must(t, err)
			testbed.RunImage(t, s, s.Ref("others:"+tag), "others", "remora", testbed.Programs[2])
			// crane's has a gzip member for each file, so that the rest would be thousands of requests.
			_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", s.Ref("others:"+tag))
			testbed.Must(t, err)
			// umoci lists a directory only if it changed: these are unlisted in its layer.
			sameTree(t, s, s.Ref("others:"+tag), s.Ref("others:umoci"), func(p string) bool { return p == "usr" || p == "usr/share" || p == "etc" })
		})
	}
}
