package testbed

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const honestLayers = 4

// PullsTogether is how many images a Neighbourhood pulls at a time beside those that it starts.
const PullsTogether = 8

// A Neighbourhood is images on one stack that are started while others are pulled.
type Neighbourhood struct {
	Stack       *Stack
	Work        string // a directory
	HonestBytes int64  // in each of the layers of an image that is started
	// Pushed is called, if there is one, for each image that is pulled beside others, with its name in the registry.
	Pushed func(k int, name, layout string, layer Blob) error
	made   int
}

// Image pushes an image of its own, gzip or converted, and returns its reference.
func (n *Neighbourhood) Image(ctx context.Context, converted bool, layers ...func(*tar.Writer) error) (string, error) {
	n.made++
	name := fmt.Sprintf("own%d:1", n.made)
	layout := filepath.Join(n.Work, "own")
	defer os.RemoveAll(layout)
	if err := WriteTars(layout, "src", layers...); err != nil {
		return "", err
	}
	if converted {
		_, err := n.Stack.Snapctl(ctx, "convert", "oci:"+layout+":src", n.Stack.Ref(name))
		return n.Stack.Ref(name), err
	}
	return n.Stack.Ref(name), n.Stack.Push(ctx, layout, "src", name)
}

// Honest pushes an image that is to be started.
func (n *Neighbourhood) Honest(ctx context.Context, converted bool) (string, error) {
	var layers []func(*tar.Writer) error
	for range honestLayers {
		layers = append(layers, RandomFile(fmt.Sprint("f", rand.Uint64()), n.HonestBytes))
	}
	return n.Image(ctx, converted, layers...)
}

// Start returns how long a pull, a mount and reading everything take.
func (n *Neighbourhood) Start(ctx context.Context, ref string) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(n.Work, "root-")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := n.Stack.Snapctl(ctx, "pull", ref); err != nil {
		return 0, err
	}
	if _, err := n.Stack.Ctr(ctx, "images", "mount", "--snapshotter", "remora", ref, dir); err != nil {
		return 0, err
	}
	_, err = Output(ctx, nil, "tar", "-cf", "/dev/null", "--checkpoint=100000", dir)
	took = time.Since(began)
	return took, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
}

// Beside returns how long starts of some images take while as many images as crowd says, of one layer each, are pulled beside them.
func (n *Neighbourhood) Beside(ctx context.Context, crowd, starts int, layer func(k int) Blob) (times []time.Duration, err error) {
	var refs []string
	for range crowd {
		n.made++
		name, layout := fmt.Sprintf("own%d:1", n.made), filepath.Join(n.Work, "crowd")
		blob := layer(n.made)
		err := errors.Join(WriteBlobs(layout, "src", blob), n.Stack.Push(ctx, layout, "src", name))
		if err == nil && n.Pushed != nil {
			err = n.Pushed(n.made, name, layout, blob)
		}
		if err := errors.Join(err, os.RemoveAll(layout)); err != nil {
			return nil, err
		}
		refs = append(refs, n.Stack.Ref(name))
	}
	var honest []string
	for range starts {
		ref, err := n.Honest(ctx, true)
		if err != nil {
			return nil, err
		}
		honest = append(honest, ref)
	}
	todo := make(chan string)
	var pulled atomic.Int64
	var pulls sync.WaitGroup
	for range PullsTogether {
		pulls.Go(func() {
			for ref := range todo {
				_, _ = n.Stack.Snapctl(ctx, "pull", ref) // hostile ones fail
				pulled.Add(1)
			}
		})
	}
	pulls.Go(func() {
		defer close(todo)
		for _, ref := range refs {
			todo <- ref
		}
	})
	for i, ref := range honest {
		for pulled.Load() < int64(crowd/20+i*crowd/starts) {
			time.Sleep(10 * time.Millisecond)
		}
		var took time.Duration
		if took, err = n.Start(ctx, ref); err != nil {
			break
		}
		times = append(times, took)
	}
	pulls.Wait()
	return times, err
}
