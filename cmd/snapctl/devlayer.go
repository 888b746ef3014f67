package main

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cmd/internal/control"
)

// layerTarget takes IMAGE@LAYER-DIGEST apart. A file of that name is a file.
func layerTarget(target string) (image string, layer digest.Digest, ok bool) {
	at := strings.LastIndex(target, "@")
	if at < 1 {
		return "", "", false
	}
	layer, err := digest.Parse(target[at+1:])
	if err != nil {
		return "", "", false
	}
	if _, err := os.Stat(target); err == nil {
		return "", "", false
	}
	return target[:at], layer, true
}

// serveLayer serves what is mounted of a layer, for as long as remorad is there.
func (a *app) serveLayer(ctx context.Context, o devServe, image string, layer digest.Digest, tlsConfig *tls.Config) error {
	s, err := a.openImage(ctx, image, o.pull)
	if err != nil {
		return err
	}
	defer s.close()
	serve, stop := context.WithCancel(ctx)
	defer stop()
	// remorad's part ends last: clients are answered until then.
	keep, release := context.WithCancel(context.WithoutCancel(ctx))
	ready := make(chan string, 1)
	ended := make(chan error, 1)
	go func() {
		exposed := false
		err := s.remora.Expose(keep, &control.ExposeRequest{Namespace: s.namespace, Manifest: s.manifest, Ref: s.img.Name(), Layer: layer},
			func(r *control.ExposeReply) { exposed = true; ready <- r.Path })
		switch {
		case keep.Err() != nil:
			err = nil
		case exposed:
			err = errors.New("remorad has ended, which reads the layer: start serve again")
		default:
			err = control.Explain(err, s.app.remora)
		}
		stop()
		ended <- err
	}()
	select {
	case path := <-ready:
		err = a.serveExposed(serve, o, image+"@"+layer.String(), path, tlsConfig)
	case <-serve.Done():
	}
	release()
	return errors.Join(err, <-ended)
}

func (a *app) serveExposed(ctx context.Context, o devServe, target, path string, tlsConfig *tls.Config) (err error) {
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return a.serveDevice(ctx, o, target, blockdev.ReadOnly(f), tlsConfig)
}
