package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

const (
	manyImages = 10
	manyLayers = 100 // an image
	manyFiles  = 100 // a layer
)

// layers measures what a thousand mounted layers cost, and how long a restart takes with them.
func layers(ctx context.Context, o options) (err error) {
	fmt.Printf("\n%d layers mounted.\n", manyImages*manyLayers)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tpull and mount, s\tremorad, MiB\tholder, MiB\tboth, KiB a layer\trestart after SIGKILL with 100 "+
		"layers, ms\twith all, ms\tremorad then, MiB")
	for _, backend := range []string{"precontent", "fuse-file"} {
		if err := layersBy(ctx, o, t, backend); err != nil {
			return err
		}
	}
	return t.Flush()
}

func layersBy(ctx context.Context, o options, t *tabwriter.Writer, backend string) (err error) {
	s, err := testbed.NewStack(filepath.Join(o.work, "layers-"+backend), testbed.Options{LogLevel: "warn",
		Registry: filepath.Join(testbed.Work(), "layers-registry"), Config: fmt.Sprintf("[mount]\nbackend = %q\n", backend)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	marker := filepath.Join(testbed.Work(), "layers-registry", "pushed")
	if _, err := os.Stat(marker); err != nil {
		fmt.Fprintln(os.Stderr, "making the layers, once")
		for i := range manyImages {
			src := filepath.Join(o.work, fmt.Sprint("layers-src-", i))
			if err := testbed.WriteTars(src, "src", manyTars(i)...); err != nil {
				return err
			}
			if _, err := s.Snapctl(ctx, "convert", "oci:"+src+":src", s.Ref(fmt.Sprintf("layers%d:lazy", i))); err != nil {
				return err
			}
		}
		if err := os.WriteFile(marker, nil, 0o644); err != nil {
			return err
		}
	}
	pull := func(i int) error {
		_, err := s.Snapctl(ctx, "pull", s.Ref(fmt.Sprintf("layers%d:lazy", i)))
		return err
	}
	began := time.Now()
	if err := pull(0); err != nil {
		return err
	}
	took := time.Since(began)
	restartFew, err := restartTime(s)
	if err != nil {
		return err
	}
	began = time.Now()
	for i := 1; i < manyImages; i++ {
		if err := pull(i); err != nil {
			return err
		}
	}
	took += time.Since(began)
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	for _, l := range st.Layers {
		if l.State != "mounted" {
			return fmt.Errorf("layer %s is %s: %s", l.Digest, l.State, l.Reason)
		}
	}
	if len(st.Layers) != manyImages*manyLayers {
		return fmt.Errorf("%d layers", len(st.Layers))
	}
	time.Sleep(5 * time.Second)
	daemon, err := rssAnon(s.RemoradPID())
	if err != nil {
		return err
	}
	holder, err := rssAnon(s.HolderPID())
	if err != nil {
		return err
	}
	restartAll, err := restartTime(s)
	if err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	after, err := rssAnon(s.RemoradPID())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%d\t%.1f\n", backend, took.Seconds(), float64(daemon)/1024, float64(holder)/1024,
		float64(daemon+holder)/float64(len(st.Layers)), restartFew.Milliseconds(), restartAll.Milliseconds(), float64(after)/1024)
	return err
}

// restartTime is from the start of the new process until its socket answers.
func restartTime(s *testbed.Stack) (time.Duration, error) {
	if err := s.StopRemorad(syscall.SIGKILL); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := s.StartRemoradOnly(); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, s.AwaitContainerd()
}

func manyTars(image int) (all []func(*tar.Writer) error) {
	for l := range manyLayers {
		all = append(all, func(tw *tar.Writer) error {
			for f := range manyFiles {
				body := fmt.Sprintf("file %d of layer %d of image %d\n", f, l, image)
				if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("l%d-%d/f%d", image, l, f), Typeflag: tar.TypeReg,
					Mode: 0o644, Size: int64(len(body))}); err != nil {
					return err
				}
				if _, err := io.WriteString(tw, body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return all
}
