package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/link"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/remote/store/s3store"
	"github.com/remora-storage/remora/volume"
)

// A volumeBed is a volume with all that it needs in this process.
type volumeBed struct {
	*volume.Volume
	cache *cache.Cache
}

func newVolume(ctx context.Context, dir string, st store.Store, class volume.Class, cacheLimit int64) (*volumeBed, error) {
	journals, err := volume.NewJournalDir(filepath.Join(dir, "journals"), 0)
	if err != nil {
		return nil, err
	}
	if err := journals.MakeSpare(ctx, true); err != nil { // as a node has it that has been up for some minutes
		return nil, err
	}
	c, err := cache.Open(filepath.Join(dir, "cache"), cache.Options{Limit: cacheLimit})
	if err != nil {
		return nil, err
	}
	h, _, err := volume.Create(ctx, st, "bench", volume.Spec{Size: 4 * nbdSize, Class: class})
	if err != nil {
		return nil, err
	}
	node := volume.NewMember(st, volume.MemberOptions{ID: volume.NewID(), Incarnation: volume.NewID()})
	opts := volume.AttachOptions{Options: volume.Options{Store: st, Cache: c.Objects()}}
	if _, near := st.(*filestore.Store); near {
		opts.Cache, opts.Near = nil, true // as remorad does it
	}
	v, err := volume.Attach(ctx, h.ID, node, journals, opts)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &volumeBed{v, c}, nil
}

func (v *volumeBed) end(ctx context.Context) error {
	return errors.Join(v.Detach(ctx), v.cache.Close())
}

// volumes measures the engine behind our NBD server, and through FUSE and loop, beside a file on the same disk past its
// page cache, and what flushes cost beside one request of the store.
func volumes(ctx context.Context, o options) error {
	for _, part := range []func(context.Context, options) error{volumeEngine, volumeMount, volumeFlush} {
		if err := part(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// fioRow is one measurement by fio, of IOPS or of a latency.
type fioRow struct {
	name   string
	flags  []string
	result func(*fioReport) float64
}

type fioReport struct {
	Jobs []struct {
		Read  fioSide `json:"read"`
		Write fioSide `json:"write"`
		Sync  struct {
			Latency struct {
				Mean float64 `json:"mean"`
			} `json:"lat_ns"`
		} `json:"sync"`
	} `json:"jobs"`
}

type fioSide struct {
	IOPS  float64 `json:"iops"`
	Bytes float64 `json:"bw_bytes"`
}

func iops(r *fioReport) float64       { return r.Jobs[0].Read.IOPS + r.Jobs[0].Write.IOPS }
func megabytes(r *fioReport) float64  { return (r.Jobs[0].Read.Bytes + r.Jobs[0].Write.Bytes) / 1e6 }
func syncMicros(r *fioReport) float64 { return r.Jobs[0].Sync.Latency.Mean / 1e3 }

func fio(ctx context.Context, engine []string, row fioRow, during time.Duration) (float64, error) {
	args := append([]string{"--name=bench", "--output-format=json", "--time_based", fmt.Sprintf("--runtime=%dms",
		during.Milliseconds())}, engine...)
	flush := "fdatasync" // of NBD there is one kind of flush, which fio's engine calls fsync
	if strings.Contains(engine[0], "nbd") {
		flush = "fsync"
	}
	for _, f := range row.flags {
		args = append(args, strings.Replace(f, "SYNC", flush, 1))
	}
	out, err := testbed.Output(ctx, nil, "fio", args...)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	var r fioReport
	if err := json.Unmarshal([]byte(out[max(0, strings.Index(out, "{")):]), &r); err != nil || len(r.Jobs) != 1 {
		return 0, fmt.Errorf("fio printed %.200q: %w", out, err)
	}
	return row.result(&r), nil
}

// side is something that fio can be pointed at.
type side struct {
	name   string
	engine []string
}

// compare prints a row for each measurement: both sides and the first ÷ the second, in rounds in turn.
func compare(ctx context.Context, o options, rows []fioRow, a, b side) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\t%s\t%s\t÷\n", a.name, b.name)
	for _, row := range rows {
		if !strings.Contains(row.name, o.only) {
			continue
		}
		var as, bs, ratios []float64
		for range o.rounds {
			x, err := fio(ctx, a.engine, row, o.during)
			if err != nil {
				return err
			}
			y, err := fio(ctx, b.engine, row, cmp.Or(o.beside, o.during))
			if err != nil {
				return err
			}
			as, bs, ratios = append(as, x), append(bs, y), append(ratios, x/y)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.2f\n", row.name, median(as), median(bs), median(ratios))
	}
	return t.Flush()
}

// serveNBD serves a device on a socket until ctx ends.
func serveNBD(ctx context.Context, dev blockdev.Device, socket string) (wait func() error, err error) {
	server, err := nbd.New([]nbd.Export{{Device: dev}}, nbd.Options{})
	if err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	return func() error { return <-ended }, nil
}

func volumeEngine(ctx context.Context, o options) (err error) {
	dir := filepath.Join(o.work, "volume")
	st, err := filestore.Make(filepath.Join(dir, "store"), filestore.Options{Bulk: volume.IsSegment})
	if err != nil {
		return err
	}
	v, err := newVolume(ctx, dir, st, volume.Local, nbdSize/2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.end(ctx)) }()
	serve, stop := context.WithCancel(ctx)
	socket := filepath.Join(dir, "v.sock")
	wait, err := serveNBD(serve, v, socket)
	if err != nil {
		stop()
		return err
	}
	defer func() { stop(); err = errors.Join(err, wait()) }()
	image := filepath.Join(dir, "ext4.img")
	if err := fullFile(image); err != nil {
		return err
	}
	engine := side{"volume", []string{"--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket}}
	disk := side{"ext4", []string{"--ioengine=libaio", "--direct=1", "--filename=" + image}}
	fmt.Printf("\nVolume of class local, journal and store on one disk, by our NBD server and fio's nbd engine, beside a "+
		"file of ext4 with O_DIRECT. %d rounds of %v, medians.\n", o.rounds, o.during)
	return compare(ctx, o, []fioRow{
		{"4 KiB random write, depth 32, fdatasync every 32, IOPS", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32",
			"--SYNC=32", "--size=1g"}, iops},
		{"1 MiB sequential write, depth 8, MB/s", []string{"--rw=write", "--bs=1m", "--iodepth=8", "--size=1g"}, megabytes},
		{"4 KiB write and fdatasync, one by one: fdatasync, µs", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1",
			"--SYNC=1", "--size=1g"}, syncMicros},
		{"1 MiB sequential read of 256 MiB, cached, depth 8, MB/s", []string{"--rw=read", "--bs=1m", "--iodepth=8", "--size=256m"}, megabytes},
		{"4 KiB random read of 256 MiB, cached, depth 32, IOPS", []string{"--rw=randread", "--bs=4k", "--iodepth=32", "--size=256m"}, iops},
	}, engine, disk)
}

// volumeMount goes through FUSE and loop, beside the same export over a device that has no bytes.
func volumeMount(ctx context.Context, o options) (err error) {
	dir := filepath.Join(o.work, "volumemount")
	st, err := filestore.Make(filepath.Join(dir, "store"), filestore.Options{Bulk: volume.IsSegment})
	if err != nil {
		return err
	}
	v, err := newVolume(ctx, dir, st, volume.Local, nbdSize)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.end(ctx)) }()
	mnt := filepath.Join(dir, "files")
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		return err
	}
	files, err := fusefile.Mount(mnt, fusefile.Options{Writable: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Unmount()) }()
	var sides []side
	for i, d := range []struct {
		name string
		dev  blockdev.Device
	}{{"volume", v}, {"null device", null{}}} {
		l, err := blockdev.AttachLoopOn(files.Export(fusefile.FirstNode+uint64(i), d.dev), blockdev.LoopOptions{Writable: true, Direct: true})
		if err != nil {
			return err
		}
		defer l.Release()
		sides = append(sides, side{d.name, []string{"--ioengine=libaio", "--direct=1", "--filename=" + l.Path()}})
	}
	fmt.Println("\nThe same through FUSE and loop, beside a device that has no bytes behind the same export.")
	return compare(ctx, o, []fioRow{
		{"4 KiB random write, depth 32, IOPS", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=1g"}, iops},
		{"4 KiB random read of 256 MiB, depth 32, IOPS", []string{"--rw=randread", "--bs=4k", "--iodepth=32", "--size=256m"}, iops},
		{"4 KiB write and fdatasync, one by one: fdatasync, µs", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1",
			"--SYNC=1", "--size=1g"}, syncMicros},
	}, sides[0], sides[1])
}

// volumeFlush measures flushes of class remote with a server in this process behind the link, beside one put.
func volumeFlush(ctx context.Context, o options) (err error) {
	dir := filepath.Join(o.work, "volumeflush")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	backend := s3mem.New()
	if err := backend.CreateBucket("volumes"); err != nil {
		return err
	}
	server := httptest.NewServer(gofakes3.New(backend).Server())
	defer server.Close()
	k, err := link.New(server.Listener.Addr().String(), link.Options{RTT: o.rtt, Rate: o.mbit * 1e6 / 8})
	if err != nil {
		return err
	}
	defer k.Close()
	creds := filepath.Join(dir, "credentials")
	if err := os.WriteFile(creds, []byte("[default]\naws_access_key_id = key\naws_secret_access_key = secret\n"), 0o600); err != nil {
		return err
	}
	st, err := s3store.Open(s3store.Options{Endpoint: "http://" + k.Addr(), Region: "us-east-1", Bucket: "volumes", Credentials: creds})
	if err != nil {
		return err
	}
	v, err := newVolume(ctx, dir, st, volume.Remote, nbdSize)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.end(ctx)) }()
	const times = 15
	timed := func(do func(i int) error) (float64, error) {
		var all []float64
		for i := range times {
			begin := time.Now()
			if err := do(i); err != nil {
				return 0, err
			}
			all = append(all, time.Since(begin).Seconds()*1e3)
		}
		return median(all), nil
	}
	p := make([]byte, 64<<10)
	put, err := timed(func(i int) error {
		_, err := st.Put(ctx, fmt.Sprintf("bench/%d", i), p)
		return err
	})
	if err != nil {
		return err
	}
	flush, err := timed(func(i int) error {
		if err := v.WriteAt(ctx, p, int64(i)<<20); err != nil {
			return err
		}
		return v.Flush(ctx)
	})
	if err != nil {
		return err
	}
	inPlace, appended, err := ext4Syncs(dir, v, times)
	if err != nil {
		return err
	}
	before, _ := k.Stats()
	clean, err := timed(func(int) error { return v.Flush(ctx) })
	if err != nil {
		return err
	}
	after, _ := k.Stats()
	fmt.Printf("\nFlushes of class remote, S3 behind %v and %d Mbit/s, median of %d:\n  one put of 64 KiB %.1f ms; a write "+
		"of 64 KiB and a flush %.1f ms: %.2f puts; a flush with nothing to do %.3f ms, %d connections more\n",
		o.rtt, o.mbit, times, put, flush, flush/put, clean, after-before)
	fmt.Printf("  on an ext4: fdatasync after 4 KiB into a file that was written before %.1f ms: %.2f puts; fsync after 4 "+
		"KiB behind its end %.1f ms: %.2f puts\n",
		inPlace, inPlace/put, appended, appended/put)
	return nil
}

// ext4Syncs makes an ext4 on a device and returns how many milliseconds it takes to sync 4 KiB in the middle of a file that
// was written before, and 4 KiB more at the end of one: medians.
func ext4Syncs(dir string, dev blockdev.Device, times int) (inPlace, appended float64, err error) {
	files := filepath.Join(dir, "files")
	mnt := filepath.Join(dir, "mnt")
	for _, d := range []string{files, mnt} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return 0, 0, err
		}
	}
	fuse, err := fusefile.Mount(files, fusefile.Options{Writable: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, fuse.Unmount()) }()
	l, err := blockdev.AttachLoopOn(fuse.Export(fusefile.FirstNode, dev), blockdev.LoopOptions{Writable: true, Direct: true})
	if err != nil {
		return 0, 0, err
	}
	defer l.Release()
	ctx := context.Background()
	// The whole of its tables now: what it puts off would come between.
	for _, c := range [][]string{{"mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", l.Path(),
		"1g"}, {"mount", l.Path(), mnt}} {
		if out, err := testbed.Output(ctx, nil, c[0], c[1:]...); err != nil {
			return 0, 0, fmt.Errorf("%w: %s", err, out)
		}
	}
	defer func() { err = errors.Join(err, unix.Unmount(mnt, 0)) }()
	f, err := os.Create(filepath.Join(mnt, "file"))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 4<<20)); err != nil {
		return 0, 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, 0, err
	}
	timed := func(sync func(fd int) error, off func(i int) int64) (float64, error) {
		var all []float64
		for i := range times {
			if _, err := f.WriteAt(make([]byte, 4096), off(i)); err != nil {
				return 0, err
			}
			begin := time.Now()
			if err := sync(int(f.Fd())); err != nil {
				return 0, err
			}
			all = append(all, time.Since(begin).Seconds()*1e3)
		}
		return median(all), nil
	}
	time.Sleep(time.Second) // so that no time stamp of the file is due, which changes once in a while only
	if inPlace, err = timed(unix.Fdatasync, func(i int) int64 { return int64(i) * 128 << 10 }); err != nil {
		return 0, 0, err
	}
	appended, err = timed(unix.Fsync, func(i int) int64 { return 4<<20 + int64(i)*4096 })
	return inPlace, appended, err
}
