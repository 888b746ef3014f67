package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

const (
	bigFile     = "big"  // all of it present
	missingFile = "rest" // nothing of it, so that the layer is incomplete
	bigBytes    = 192 << 20
	restBytes   = 8 << 20
	randomReads = 4000
	randomBytes = 4096
)

// bigTree writes a directory with the two files.
func bigTree(dir string) error {
	r := rand.NewChaCha8([32]byte{9})
	for name, size := range map[string]int64{bigFile: bigBytes, missingFile: restBytes} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, r, size)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// bigImage puts an image of the tree into the stack's registry and returns its reference.
func bigImage(ctx context.Context, s *testbed.Stack, o options, tree string) (string, error) {
	layout := filepath.Join(o.work, "big-layout")
	if err := testbed.WriteTars(layout, "src", func(tw *tar.Writer) error {
		for _, name := range []string{bigFile, missingFile} {
			f, err := os.Open(filepath.Join(tree, name))
			if err != nil {
				return err
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				return err
			}
			if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: st.Size()}); err != nil {
				return err
			}
			if _, err := io.Copy(tw, f); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return "", err
	}
	ref := s.Ref("big:lazy")
	_, err := s.Snapctl(ctx, "convert", "oci:"+layout+":src", ref)
	return ref, err
}

// bigMounted starts a stack whose layers are mounted by a back end, pulls the image of the tree and
// mounts its root file system on a directory. end takes all of it away.
func bigMounted(ctx context.Context, o options, name, backend, tree string) (s *testbed.Stack, ref, on string,
	end func() error, err error) {
	s, err = testbed.NewStack(filepath.Join(o.work, name+"-"+backend), testbed.Options{LogLevel: "info",
		Config: fmt.Sprintf("[mount]\nbackend = %q\n", backend)})
	if err != nil {
		return nil, "", "", nil, err
	}
	on = filepath.Join(o.work, name+"-on-"+backend)
	end = func() error {
		if err := unix.Unmount(on, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return errors.Join(err, s.Close())
		}
		return s.Close()
	}
	ref, err = bigImage(ctx, s, o, tree)
	if err == nil {
		_, err = s.Snapctl(ctx, "pull", ref)
	}
	if err == nil {
		err = os.MkdirAll(on, 0o755)
	}
	if err == nil {
		_, err = s.Ctr(ctx, "images", "mount", "--snapshotter", "remora", ref, on)
	}
	if err != nil {
		return nil, "", "", nil, errors.Join(err, end())
	}
	return s, ref, on, end, nil
}

// present compares reading what is present of an incomplete layer with reading a local file.
func present(ctx context.Context, o options) (err error) {
	tree := filepath.Join(o.work, "big-tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if err := bigTree(tree); err != nil {
		return err
	}
	local, file := filepath.Join(o.work, "big-local"), filepath.Join(o.work, "big.erofs")
	if err := os.MkdirAll(local, 0o755); err != nil {
		return err
	}
	if _, err := testbed.Output(ctx, nil, "mkfs.erofs", file, tree); err != nil {
		return err
	}
	if err := unix.Mount(file, local, "erofs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s: %w", file, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(local, unix.MNT_DETACH)) }()
	fmt.Printf("\nWhat is present of an incomplete layer ÷ EROFS on a local file, page cache dropped; one file of %d MB, "+
		"%d random reads of 4 KiB. %d rounds, medians.\n",
		bigBytes>>20, randomReads, o.rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tsequential, s\tratio\t4 KiB random, s\tratio")
	for _, backend := range []string{"precontent", "fuse-file"} {
		if err := presentBy(ctx, o, t, backend, tree, local); err != nil {
			return err
		}
	}
	return t.Flush()
}

func presentBy(ctx context.Context, o options, t io.Writer, backend, tree, local string) (err error) {
	s, ref, on, end, err := bigMounted(ctx, o, "present", backend, tree)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	row := func(name string) error {
		seq, random := map[string][]time.Duration{}, map[string][]time.Duration{}
		for round := range o.rounds {
			for _, dir := range []string{local, on} {
				if err := dropCaches(); err != nil {
					return err
				}
				took, err := sequential(filepath.Join(dir, bigFile))
				if err != nil {
					return err
				}
				seq[dir] = append(seq[dir], took)
				if err := dropCaches(); err != nil {
					return err
				}
				if took, err = randomly(filepath.Join(dir, bigFile), uint64(round)); err != nil {
					return err
				}
				random[dir] = append(random[dir], took)
			}
		}
		ratio := func(m map[string][]time.Duration) float64 { return float64(median(m[on])) / float64(median(m[local])) }
		_, err := fmt.Fprintf(t, "%s\t%.3f (local %.3f)\t%.2f\t%.3f (local %.3f)\t%.2f\n", name, median(seq[on]).Seconds(),
			median(seq[local]).Seconds(), ratio(seq),
			median(random[on]).Seconds(), median(random[local]).Seconds(), ratio(random))
		return err
	}
	if _, err := sequential(filepath.Join(on, bigFile)); err != nil { // makes it present
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	if l := st.Layers[0]; l.PresentBytes < bigBytes || l.PresentBytes >= l.TotalBytes || l.Backend != backend {
		return fmt.Errorf("%d of %d bytes are present, by %s", l.PresentBytes, l.TotalBytes, l.Backend)
	}
	if err := row(backend + ", incomplete"); err != nil {
		return err
	}
	// What background work does within a minute.
	if _, err := s.Snapctl(ctx, "fetch", "--cache-only", ref); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // a second for the kernel to have it to itself
	return row(backend + ", completed meanwhile, the same mount")
}

func sequential(path string) (time.Duration, error) {
	began := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return time.Since(began), err
}

func randomly(path string, seed uint64) (time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return 0, err
	}
	r := rand.New(rand.NewPCG(seed, 4))
	p := make([]byte, randomBytes)
	began := time.Now()
	for range randomReads {
		if _, err := f.ReadAt(p, int64(r.IntN(bigBytes/randomBytes))*randomBytes); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}
