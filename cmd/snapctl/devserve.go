package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/cmd/internal/cli"
)

const defaultNBDSocket = "/run/remora/nbd.sock"

// devServe is what "dev serve" was told.
type devServe struct {
	unix, tcp        string
	readOnly, direct bool
	export           string
	pull             pullOptions // of a layer's image
	cert, key, ca    string
	clients          int
	verbose          bool
}

func (a *app) devServeCommand() *cobra.Command {
	var o devServe
	c := &cobra.Command{
		Use:   "serve [--unix SOCKET | --tcp ADDRESS] FILE | memory:SIZE | IMAGE@LAYER-DIGEST",
		Short: "Serve a file, memory or a layer over NBD",
		Long: `serve makes a block device of a file and serves it to NBD clients (nbd-client, qemu, nbdcopy, nbdinfo,
fio). On a signal it answers the requests that it has read, flushes the file and removes its socket.

  snapctl dev serve disk.img
  snapctl dev serve --tcp 127.0.0.1:10809 --export scratch memory:1GiB
  snapctl dev serve registry.example.com/python:3-lazy@sha256:4d3d2468133808ae4cf2aa4d4b6dc3742f8c28db3a1602428a6ab452c0c2f2e6
  snapctl dev serve --read-only --tcp :10809 --tls-cert server.crt --tls-key server.key --tls-ca ca.crt disk.img

FILE is a regular file, which may be sparse, or a block device that is not mounted. It is locked: another serve
of the same file is refused unless both are read-only. "memory:" makes an empty device of that size, which ends
with the command. A layer's digest behind an image's name serves what is mounted of that layer, an EROFS file system
whose data is fetched when it is read: read-only, by remorad, and the image is pulled if need be. It ends when remorad does.

A flush, and a write with FUA, returns when the bytes are on stable storage. Several connections may use the
device at the same time. With --tls-cert and --tls-key clients must use TLS, and with --tls-ca show a certificate of that
authority too. Without --tls-ca, a TCP socket admits every client that reaches it: on 127.0.0.1 that is every user of this
machine, and every container in its network. Only root can use the Unix socket.

With --json one object is printed when clients can connect: uri, size_bytes, read_only, export.`,
		Args: exactly(1, "one FILE, memory:SIZE or IMAGE@LAYER-DIGEST"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.devServe(cmd.Context(), o, args[0]) },
	}
	o.pull.flags(c)
	f := c.Flags()
	f.StringVar(&o.unix, "unix", "", "listen on this Unix `socket` (default "+defaultNBDSocket+")")
	f.StringVar(&o.tcp, "tcp", "", "listen on this TCP `address`, for example 127.0.0.1:10809")
	f.BoolVar(&o.readOnly, "read-only", false, "refuse writes")
	f.BoolVar(&o.direct, "direct", false, "read and write the file past the page cache")
	f.StringVar(&o.export, "export", "", "the export's `name` (default none)")
	f.StringVar(&o.cert, "tls-cert", "", "the server's certificate, a PEM `file`")
	f.StringVar(&o.key, "tls-key", "", "its key, a PEM `file`")
	f.StringVar(&o.ca, "tls-ca", "", "let in only clients with a certificate of this authority, a PEM `file`")
	f.IntVar(&o.clients, "clients", 64, "the most `connections` at a time")
	f.BoolVar(&o.verbose, "verbose", false, "log clients that connect and requests that are refused")
	return c
}

func (a *app) devServe(ctx context.Context, o devServe, target string) (err error) {
	if o.unix != "" && o.tcp != "" {
		return cli.Usagef("--unix and --tcp: choose one")
	}
	if o.clients < 1 {
		return cli.Usagef("--clients %d: want 1 or more", o.clients)
	}
	if o.unix == "" {
		o.unix = defaultNBDSocket
	}
	tlsConfig, err := o.tls()
	if err != nil {
		return err
	}
	if image, layer, ok := layerTarget(target); ok {
		return a.serveLayer(ctx, o, image, layer, tlsConfig)
	}
	dev, closer, err := openTarget(target, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer()) }()
	return a.serveDevice(ctx, o, target, dev, tlsConfig)
}

// serveDevice serves until ctx ends.
func (a *app) serveDevice(ctx context.Context, o devServe, target string, dev blockdev.Device, tlsConfig *tls.Config) error {
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	server, err := nbd.New([]nbd.Export{{Name: o.export, Description: target, Device: dev}},
		nbd.Options{TLS: tlsConfig, Clients: o.clients, Log: log})
	if err != nil {
		return err
	}
	l, err := o.listen(ctx)
	if err != nil {
		return err
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && o.ca == "" {
		a.note("%s can use this device at %s; use --tls-ca to admit only clients with a certificate%s", whoReaches(tcp), tcp, orUnix(tcp))
	}
	_, writable := dev.(blockdev.Writer)
	reply := devServing{URI: o.uri(l.Addr()), Size: dev.Size(), ReadOnly: !writable, Export: o.export}
	if err := a.print(reply, func(w io.Writer) {
		mode := "read-write"
		if reply.ReadOnly {
			mode = "read-only"
		}
		fmt.Fprintf(w, "serving %s (%s, %s) at %s\n", target, size(reply.Size), mode, reply.URI)
	}); err != nil {
		return errors.Join(err, l.Close())
	}
	return server.Serve(ctx, l)
}

// whoReaches says who can connect to an address.
func whoReaches(at *net.TCPAddr) string {
	if at.IP.IsLoopback() {
		return "every user of this machine"
	}
	return "everyone who reaches it"
}

// orUnix names the other choice that clients on this machine have.
func orUnix(at *net.TCPAddr) string {
	if at.IP.IsLoopback() {
		return ", or --unix, whose socket only root can use"
	}
	return ""
}

// devServing is what is printed when clients can connect.
type devServing struct {
	URI      string `json:"uri"`
	Size     int64  `json:"size_bytes"`
	ReadOnly bool   `json:"read_only"`
	Export   string `json:"export"`
}

// openTarget opens what is to be served. closer makes what was written durable.
func openTarget(target string, o devServe) (dev blockdev.Device, closer func() error, err error) {
	if text, ok := strings.CutPrefix(target, "memory:"); ok {
		n, err := units.RAMInBytes(text)
		if err != nil || n <= 0 {
			return nil, nil, cli.Usagef("%s: want a size, for example memory:1GiB", target)
		}
		ram, err := blockdev.NewRAM(n)
		if err != nil {
			return nil, nil, err
		}
		if o.readOnly {
			return blockdev.ReadOnly(ram), ram.Close, nil
		}
		return ram, ram.Close, nil
	}
	f, err := blockdev.OpenFile(target, blockdev.FileOptions{ReadOnly: o.readOnly, Direct: o.direct})
	if err != nil {
		return nil, nil, err
	}
	if o.readOnly {
		return blockdev.ReadOnly(f), f.Close, nil
	}
	return f, func() error { return errors.Join(f.Flush(context.Background()), f.Close()) }, nil
}

func (o *devServe) listen(ctx context.Context) (net.Listener, error) {
	if o.tcp != "" {
		return new(net.ListenConfig).Listen(ctx, "tcp", o.tcp)
	}
	return cli.ListenUnix(ctx, o.unix)
}

// uri is where clients find the export (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md).
func (o *devServe) uri(a net.Addr) string {
	scheme := "nbd"
	if o.cert != "" {
		scheme = "nbds"
	}
	path := (&url.URL{Path: "/" + o.export}).EscapedPath()
	if o.tcp != "" {
		return scheme + "://" + a.String() + path
	}
	return scheme + "+unix://" + path + "?socket=" + (&url.URL{Path: o.unix}).EscapedPath()
}

// tls returns what the flags say of TLS, nil if nothing.
func (o *devServe) tls() (*tls.Config, error) {
	if o.cert == "" && o.key == "" {
		if o.ca != "" {
			return nil, cli.Usagef("--tls-ca needs the server's own --tls-cert and --tls-key")
		}
		return nil, nil
	}
	if o.cert == "" || o.key == "" {
		return nil, cli.Usagef("--tls-cert and --tls-key belong together")
	}
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert %s, --tls-key %s: %w", o.cert, o.key, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if o.ca != "" {
		p, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, err
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(p) {
			return nil, fmt.Errorf("--tls-ca %s holds no certificate", o.ca)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}
