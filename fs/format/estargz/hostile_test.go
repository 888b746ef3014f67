package estargz_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	lib "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/conformance/falsify"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/format"
	"github.com/remora-storage/remora/fs/format/estargz"
)

const payloadSize = 1000 // bytes of blob data that made-up tables may point into

// madeUp returns a blob whose table is toc, and the table's digest.
func madeUp(t testing.TB, toc io.Reader, size int64) ([]byte, digest.Digest) {
	t.Helper()
	blob := bytes.Repeat([]byte{'x'}, payloadSize)
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Name: "stargz.index.json", Typeflag: tar.TypeReg, Size: size}); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(tw, h), toc, size); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	blob = append(blob, packed.Bytes()...)
	return append(blob, footer(payloadSize)...), digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil))
}

func footer(tocOff int64) []byte {
	sub := fmt.Sprintf("%016xSTARGZ", tocOff)
	return lib.CreateGzipFooter(append([]byte{'S', 'G', byte(len(sub)), 0}, sub...))
}

func fromString(t testing.TB, toc string) ([]byte, digest.Digest) {
	t.Helper()
	return madeUp(t, strings.NewReader(toc), int64(len(toc)))
}

var sum = digest.FromString("x").String()

func reg(fields string) string {
	return fmt.Sprintf(`{"version":1,"entries":[{"name":"f","type":"reg","mode":420,"chunkDigest":%q,"digest":%q,%s}]}`, sum, sum, fields)
}

// TestHostileTables: each of these is refused as the layer's own fault.
func TestHostileTables(t *testing.T) {
	long := strings.Repeat("n", 256)
	for name, toc := range map[string]string{
		"not JSON":                   `this is not JSON`,
		"not an object":              `[1,2,3]`,
		"half an object":             `{"version":1,"entries":[{"name":"a","type":"dir"`,
		"another version":            `{"version":7,"entries":[]}`,
		"entries is a number":        `{"version":1,"entries":5}`,
		"two lists of entries":       `{"entries":[],"entries":[]}`,
		"deep nesting":               `{"version":1,"entries":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
		"name with ..":               `{"entries":[{"name":"a/../../etc/passwd","type":"dir"}]}`,
		"name of 256 bytes":          `{"entries":[{"name":"` + long + `","type":"dir"}]}`,
		"path of 5000 bytes":         `{"entries":[{"name":"` + strings.Repeat("d/", 2500) + `f","type":"dir"}]}`,
		"name with NUL":              `{"entries":[{"name":"a\u0000b","type":"dir"}]}`,
		"size of 2^62":               reg(`"size":4611686018427387904,"offset":0`),
		"negative size":              reg(`"size":-1,"offset":0`),
		"chunk behind the data":      reg(`"size":10,"offset":1000`),
		"chunk at a negative offset": reg(`"size":10,"offset":-5`),
		"chunk of 2^62":              reg(`"size":10,"offset":0,"chunkSize":4611686018427387904`),
		"inner offset of 2^62":       reg(`"size":10,"offset":0,"innerOffset":4611686018427387904`),
		"negative inner offset":      reg(`"size":10,"offset":0,"innerOffset":-1`),
		"chunk larger than a limit":  reg(`"size":100000000,"offset":0`),
		"chunks that leave a gap":    reg(`"size":10,"offset":0,"chunkSize":4`),
		"digest of another kind":     `{"entries":[{"name":"f","type":"reg","size":1,"offset":0,"chunkDigest":"md5:00"}]}`,
		"digest that is none":        `{"entries":[{"name":"f","type":"reg","size":1,"offset":0,"chunkDigest":"sha256:zz"}]}`,
		"no digest at all":           `{"entries":[{"name":"f","type":"reg","size":1,"offset":0}]}`,
		"chunk without a file":       `{"entries":[{"name":"f","type":"chunk","offset":0,"chunkSize":1}]}`,
		"unknown type":               `{"entries":[{"name":"f","type":"portal"}]}`,
		"hard link to nothing":       `{"entries":[{"name":"f","type":"hardlink","linkName":"g"}]}`,
		"hard link to itself":        `{"entries":[{"name":"f","type":"hardlink","linkName":"f"}]}`,
		"hard link to a directory":   `{"entries":[{"name":"d","type":"dir"},{"name":"f","type":"hardlink","linkName":"d"}]}`,
		"symbolic links in a circle": `{"entries":[{"name":"a","type":"symlink","linkName":"b"},` +
			`{"name":"b","type":"symlink","linkName":"a"},{"name":"a/x","type":"dir"}]}`,
		"symbolic link to nothing": `{"entries":[{"name":"a","type":"symlink","linkName":""}]}`,
		"entry under a file":       `{"entries":[{"name":"f","type":"reg"},{"name":"f/x","type":"dir"}]}`,
		"uid of 2^40":              `{"entries":[{"name":"f","type":"dir","uid":1099511627776}]}`,
		"negative gid":             `{"entries":[{"name":"f","type":"dir","gid":-1}]}`,
		"device of 2^40":           `{"entries":[{"name":"f","type":"char","devMajor":1099511627776}]}`,
		"time that is none":        `{"entries":[{"name":"f","type":"dir","modtime":"yesterday"}]}`,
		"xattr of 70000 bytes":     `{"entries":[{"name":"f","type":"dir","xattrs":{"user.x":"` + strings.Repeat("AAAA", 23334) + `"}}]}`,
		"xattr name of 300 bytes":  `{"entries":[{"name":"f","type":"dir","xattrs":{"user.` + strings.Repeat("x", 300) + `":""}}]}`,
		"whiteout of nothing":      `{"entries":[{"name":"d/.wh.","type":"reg"}]}`,
		"number that overflows":    `{"entries":[{"name":"f","type":"reg","size":1e400}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			refuses(t, toc, "", 32<<20)
		})
	}
}

// TestHostileBlobs: the same for what is around the table.
func TestHostileBlobs(t *testing.T) {
	good, d := fromString(t, `{"version":1,"entries":[{"name":"d","type":"dir"}]}`)
	if _, err := estargz.Open(t.Context(), &memBlob{data: good}, estargz.Options{TOCDigest: d}); err != nil {
		t.Fatal(err)
	}
	end := len(good) - 51
	for name, c := range map[string]struct {
		blob []byte
		toc  digest.Digest
	}{
		"empty":                       {nil, d},
		"too short for a footer":      {good[:40], d},
		"no footer":                   {bytes.Repeat([]byte{0}, 5000), d},
		"table cut":                   {append(bytes.Clone(good[:payloadSize+40]), good[end:]...), d},
		"table is not gzip":           {append(bytes.Repeat([]byte{'z'}, end), good[end:]...), d},
		"another digest":              {good, digest.FromString("another")},
		"no digest":                   {good, ""},
		"footer points behind itself": {append(bytes.Clone(good[:end]), footer(1<<40)...), d},
		"footer points at itself":     {append(bytes.Clone(good[:end]), footer(int64(end))...), d},
		"footer with a negative offset": {append(bytes.Clone(good[:end]),
			bytes.Replace(footer(0), []byte("0000000000000000"), []byte("ffffffffffffffff"), 1)...), d},
	} {
		t.Run(name, func(t *testing.T) {
			opened(t, c.blob, c.toc, "", 32<<20)
		})
	}
}

// repeat yields a pattern n times between a prefix and a suffix.
func repeat(prefix, pattern, suffix string, n int) (io.Reader, int64) {
	size := int64(len(prefix) + len(pattern)*n + len(suffix))
	block := strings.Repeat(pattern, 1000)
	return io.MultiReader(strings.NewReader(prefix), &loop{block, 0, int64(len(pattern)) * int64(n)}, strings.NewReader(suffix)), size
}

type loop struct {
	s    string
	at   int
	left int64
}

func (l *loop) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), l.left)], l.s[l.at:])
	l.at = (l.at + n) % len(l.s)
	l.left -= int64(n)
	return n, nil
}

// TestRefusingCostsLittle: what is too much is refused within 64 MiB of memory, and some seconds of processor time.
func TestRefusingCostsLittle(t *testing.T) {
	for name, c := range map[string]struct {
		prefix, pattern, suffix string
		n                       int
	}{
		"a billion entries":    {`{"version":1,"entries":[{}`, `,{}`, `]}`, 1_000_000_000},
		"five million entries": {`{"version":1,"entries":[{}`, `,{"name":"a","type":"dir"}`, `]}`, 5_000_000},
		"600 MB of spaces":     {`{"version":1,`, ` `, `"entries":[]}`, 600_000_000},
		"a string of 500 MB":   {`{"version":1,"x":"`, `a`, `","entries":[{"type":"?"}]}`, 500_000_000},
		"a name of 500 MB":     {`{"version":1,"entries":[{"name":"`, `a`, `"}]}`, 500_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && c.n > 10_000_000 {
				t.Skip("long")
			}
			r, size := repeat(c.prefix, c.pattern, c.suffix, c.n)
			blob, d := madeUp(t, r, size)
			opened(t, blob, d, "", 64<<20) // garbage does not count
		})
	}
}

func FuzzFooter(f *testing.F) {
	f.Add(footer(1234), int64(5000))
	f.Add([]byte("\x1f\x8b\x08\x04nonsense"), int64(60))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		if size < int64(len(tail)) || size > 1<<20 {
			t.Skip()
		}
		blob := append(make([]byte, size-int64(len(tail))), tail...)
		var err error
		heap.LayerMost(len(tail)).Allocates(t, func() int64 {
			_, err = estargz.Open(t.Context(), &memBlob{data: blob}, estargz.Options{TOCDigest: digest.FromString("x")})
			return 0
		})
		if err == nil {
			t.Fatal("a blob without a table was accepted")
		}
	})
}

// FuzzTOC: whatever table is accepted becomes an image that fsck.erofs accepts.
func FuzzTOC(f *testing.F) {
	f.Add(`{"version":1,"entries":[{"name":"d/","type":"dir","mode":493,"modtime":"2024-01-02T03:04:05Z"},` +
		`{"name":"l","type":"symlink","linkName":"d"},{"name":"l/x","type":"fifo"}]}`)
	f.Add(reg(`"size":10,"offset":0`))
	f.Add(reg(`"size":10,"offset":5,"chunkSize":10,"xattrs":{"user.a":"AAAA","security.capability":"AQ=="}`))
	f.Add(`{"entries":[{"name":"a","type":"reg"},{"name":"b","type":"hardlink","linkName":"a"},` +
		`{"name":".wh.c","type":"reg"},{"name":".wh..wh..opq","type":"reg"},{"name":"c","type":"char","devMajor":1,"devMinor":3}]}`)
	f.Add(falsify.Marked(200, 100))
	f.Fuzz(func(t *testing.T, toc string) {
		blob, d := fromString(t, toc)
		var index *format.Index
		var err error
		most := heap.LayerMost(len(toc))
		most.Allocates(t, func() int64 {
			index, err = estargz.Open(t.Context(), &memBlob{data: blob}, estargz.Options{TOCDigest: d})
			return 0
		})
		if err != nil {
			return
		}
		var plan *erofs.Plan
		most.Allocates(t, func() int64 {
			if plan, err = erofs.NewPlan(index.Layout, [16]byte{}); err != nil {
				return 0
			}
			return plan.MetaSize
		})
		if err != nil || plan.Size > 1<<30 {
			return
		}
		if _, err := plan.Spec(index.Tail); err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "image")
		img, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		if _, err := plan.WriteTo(img); err != nil {
			t.Fatal(err)
		}
		if err := img.Truncate(plan.Size); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("fsck.erofs", path).CombinedOutput(); err != nil {
			t.Fatalf("fsck.erofs: %v\n%s\n%s", err, out, toc)
		}
	})
}
