package volumes_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/link"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/volume"
)

// onS3 mounts a volume that is in a bucket of a server, at endpoint if that is not the server's own.
func onS3(t *testing.T, srv *s3Server, endpoint, class, config string) (s *testbed.Stack, mnt string) {
	t.Helper()
	s = testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config + fmt.Sprintf("credentials = %q\n", srv.credentials)})
	mnt = filepath.Join(t.TempDir(), "mnt")
	url := strings.Replace(srv.url("node"), srv.endpoint, endpoint, 1)
	snapctl(t, s, "volume", "create", "--store", url, "--class", class, "data", "1G")
	snapctl(t, s, "volume", "mount", "data", mnt)
	unmountIfFailed(t, mnt)
	return s, mnt
}

// mustBeWhole checks the volume and removes it.
func mustBeWhole(t *testing.T, s *testbed.Stack) {
	t.Helper()
	t.Log(strings.TrimSpace(snapctl(t, s, "volume", "fsck", "data")))
	snapctl(t, s, "volume", "rm", "data")
}

// TestVolumeOutage: the store hangs under load, and then is gone (for a minute each with make soak): whoever writes waits once the lease
// has run out or the journal is full, nobody sees an error, nothing is lost, and everything reaches the store afterwards.
func TestVolumeOutage(t *testing.T) { volumeOutage(t, "remote") }

// TestVolumeOutageLocal is the same for class local.
func TestVolumeOutageLocal(t *testing.T) { volumeOutage(t, "local") }

// outage is what inspect says of a volume whose store does not answer.
type outage struct {
	AtRisk int64   `json:"at_risk_bytes"`
	Lease  float64 `json:"lease_margin_seconds"`
	Store  string  `json:"store_error"`
	Waits  []struct{ What, Reason string }
}

func inspectOutage(t *testing.T, s *testbed.Stack) outage {
	t.Helper()
	return inspectOutageOf(t, s, "data")
}

func inspectOutageOf(t *testing.T, s *testbed.Stack, name string) (d outage) {
	t.Helper()
	testbed.Must(t, json.Unmarshal([]byte(snapctl(t, s, "volume", "inspect", name, "--json")), &d))
	return d
}

func volumeOutage(t *testing.T, class string) {
	t.Helper()
	t.Parallel()
	testbed.NeedRoot(t)
	minute := time.Duration(testbed.Rounds(0, 60)) * time.Second
	srv := startS3(t, "minio")
	s, mnt := onS3(t, srv, srv.endpoint, class, volumeConfig)
	l := testbed.StartLoad(t, mnt)
	l.MustReach(t, 200)
	testbed.Must(t, srv.process.Cmd.Process.Signal(unix.SIGSTOP))
	var d outage
	testbed.WaitFor(t, "the lease to run out, and requests to give up", func() bool {
		l.MustRun(t)
		d = inspectOutage(t, s)
		return d.Lease <= 0 && d.Store != "" && len(d.Waits) > 0 && d.AtRisk > 0
	})
	time.Sleep(minute)
	l.MustRun(t)
	waiting := l.Count()
	if out := snapctl(t, s, "volume", "ls"); !strings.Contains(out, srv.endpoint) {
		t.Errorf("ls without the store:\n%s", out)
	}
	testbed.Must(t, srv.process.Stop(unix.SIGKILL))
	hung := d.Store
	testbed.WaitFor(t, "requests to be refused", func() bool {
		l.MustRun(t)
		d = inspectOutage(t, s)
		return d.Store != hung && strings.Contains(d.Store, "refused")
	})
	time.Sleep(minute)
	l.MustRun(t)
	if n := l.Count(); n != waiting {
		t.Errorf("%d writes were acknowledged without a lease", n-waiting)
	}
	var err error
	srv.process, err = srv.start()
	testbed.Must(t, err)
	l.MustReach(t, waiting+200)
	mustComeBack(t, s, mnt, l.End(t))
	mustBeWhole(t, s)
}

// TestVolumeSlowLink: a link of 10 Mbit/s that a volume's own data saturates does not cost the node its lease.
func TestVolumeSlowLink(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	srv := startS3(t, "minio")
	k, err := link.New(strings.TrimPrefix(srv.endpoint, "http://"), link.Options{RTT: 20 * time.Millisecond, Rate: 10e6 / 8})
	testbed.Must(t, err)
	t.Cleanup(func() { testbed.Must(t, k.Close()) }) // the stack's end still needs it
	s, mnt := onS3(t, srv, "http://"+k.Addr(), "local", "[volume]\njournal = \"64MiB\"\n")
	l := testbed.StartLoad(t, mnt)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { // who writes more than the link takes
		p := make([]byte, 1<<20)
		f, err := os.Create(filepath.Join(mnt, "bulk"))
		for i := int64(0); err == nil; i++ {
			select {
			case <-stop:
				ended <- f.Close()
				return
			default:
			}
			if _, err = f.WriteAt(p, i%8<<20); err == nil {
				err = unix.Fdatasync(int(f.Fd()))
			}
		}
		ended <- err
	}()
	least, begin := 1e9, time.Now()
	sent := int64(0)
	for time.Since(begin) < time.Duration(testbed.Rounds(60, 300))*time.Second {
		l.MustRun(t)
		time.Sleep(500 * time.Millisecond)
		var d struct {
			Lease    float64 `json:"lease_margin_seconds"`
			Requests struct {
				Sent int64 `json:"sent_bytes"`
			} `json:"store_requests"`
		}
		out, err := s.Snapctl(t.Context(), "volume", "inspect", "data", "--json") // its requests share the link
		testbed.Must(t, err)
		testbed.Must(t, json.Unmarshal([]byte(out), &d))
		least, sent = min(least, d.Lease), d.Requests.Sent
	}
	rate := float64(sent) * 8 / time.Since(begin).Seconds() / 1e6
	t.Logf("the lease was certain for %.1f s at least; %.1f Mbit/s were sent", least, rate)
	if least <= 0 {
		t.Error("the lease was not certain for a while")
	}
	if rate < 5 {
		t.Errorf("%.1f Mbit/s do not saturate the link", rate)
	}
	close(stop)
	testbed.Must(t, <-ended)
	k.SetRate(0) // what is left to do says nothing of leases
	mustComeBack(t, s, mnt, l.End(t))
	mustBeWhole(t, s)
}

// TestVolumeSilentLink: connections die silently while segments are sent, so that neither side hears of it. What was to go by them goes
// by others within seconds, without an error.
func TestVolumeSilentLink(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	srv := startS3(t, "minio")
	k, err := link.New(strings.TrimPrefix(srv.endpoint, "http://"), link.Options{})
	testbed.Must(t, err)
	t.Cleanup(func() { testbed.Must(t, k.Close()) })
	s, mnt := onS3(t, srv, "http://"+k.Addr(), "remote", volumeConfig)
	l := testbed.StartLoad(t, mnt)
	for range testbed.Rounds(2, 20) {
		l.MustReach(t, l.Count()+100)
		k.Silence()
		begin := time.Now()
		l.MustReach(t, l.Count()+100) // of which most are written after what was under way
		t.Logf("100 more writes were flushed %v after connections had died", time.Since(begin).Round(time.Millisecond))
	}
	mustComeBack(t, s, mnt, l.End(t))
	mustBeWhole(t, s)
}

// TestVolumeDiskFull: without room for its journal a volume is not attached, and nothing stays; when the disk becomes full
// later, flushes of class local go on until the journal is full, then they wait, and go on when there is room.
func TestVolumeDiskFull(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	disk := func(size string) (dir string) {
		image := filepath.Join(t.TempDir(), "image")
		testbed.Tool(t, "truncate", "-s", size, image)
		testbed.Tool(t, "mkfs.ext4", "-q", image)
		dir = t.TempDir()
		testbed.Tool(t, "mount", "-o", "loop", image, dir)
		t.Cleanup(func() {
			// files that were read stay open for a while
			testbed.WaitFor(t, "nobody to use the disk", func() bool { return unix.Unmount(dir, 0) == nil })
		})
		return dir
	}

	small := disk("48M")
	store, err := filestore.Make(filepath.Join(t.TempDir(), "store"), filestore.Options{})
	testbed.Must(t, err)
	h, _, err := volume.Create(t.Context(), store, "data", volume.Spec{Size: 1 << 30, Class: volume.Local})
	testbed.Must(t, err)
	journals, err := volume.NewJournalDir(small, 64<<20)
	testbed.Must(t, err)
	node := volume.NewMember(store, volume.MemberOptions{ID: volume.NewID(), Incarnation: volume.NewID()})
	_, err = volume.Attach(t.Context(), h.ID, node, journals, volume.AttachOptions{Options: volume.Options{Store: store}})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("attach without room for the journal: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(small, "*.journal")); err != nil || len(left) > 0 {
		t.Errorf("%q stay (%v)", left, err)
	}

	dir := disk("400M")
	store, err = filestore.Make(filepath.Join(dir, "store"), filestore.Options{Bulk: volume.IsSegment})
	testbed.Must(t, err)
	opts := volume.AttachOptions{Options: volume.Options{Store: store, Near: true}}
	h, _, err = volume.Create(t.Context(), store, "data", volume.Spec{Size: 1 << 30, Class: volume.Local, MaxAge: time.Second})
	testbed.Must(t, err)
	journals, err = volume.NewJournalDir(filepath.Join(dir, "journals"), 64<<20)
	testbed.Must(t, err)
	node = volume.NewMember(store, volume.MemberOptions{ID: volume.NewID(), Incarnation: volume.NewID()})
	v, err := volume.Attach(t.Context(), h.ID, node, journals, opts)
	testbed.Must(t, err)
	filler := filepath.Join(dir, "filler")
	out, err := testbed.Output(t.Context(), nil, "dd", "if=/dev/zero", "of="+filler, "bs=1M")
	if err == nil {
		t.Fatalf("the disk does not become full: %s", out)
	}
	p := make([]byte, 1<<20)
	write := func(i int64) error {
		for k := range p {
			p[k] = byte(i + 1)
		}
		if err := v.WriteAt(t.Context(), p, i<<20); err != nil {
			return err
		}
		return v.Flush(t.Context())
	}
	const fits, all = 50, 120 // MiB, and more than the volume keeps in memory of its journal
	for i := range int64(fits) {
		testbed.Must(t, write(i))
	}
	testbed.WaitFor(t, "the volume to say that its store is full", func() bool {
		for _, w := range v.Status().Waits {
			if strings.Contains(w.Reason.Error(), "full") {
				return true
			}
		}
		return false
	})
	done := make(chan error, 1)
	go func() {
		var err error
		for i := int64(fits); i < all && err == nil; i++ {
			err = write(i)
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("%d MiB went into a journal of 64 MiB (%v)", all, err)
	case <-time.After(3 * time.Second):
	}
	if why := v.Status().Throttled; why != volume.ThrottleJournal {
		t.Errorf("writes wait because of %q", why)
	}
	testbed.Must(t, os.Remove(filler))
	testbed.Must(t, <-done)
	testbed.Must(t, v.Detach(t.Context()))
	testbed.Must(t, testbed.WalkStore(t.Context(), store))
	v, err = volume.Attach(t.Context(), h.ID, node, journals, opts)
	testbed.Must(t, err)
	got := make([]byte, 1<<20)
	for i := range int64(all) {
		_, err := v.ReadAt(t.Context(), got, i<<20)
		testbed.Must(t, err)
		if got[0] != byte(i+1) || got[len(got)-1] != byte(i+1) {
			t.Errorf("MiB %d is wrong", i)
		}
	}
	testbed.Must(t, v.Detach(t.Context()))
	testbed.Must(t, testbed.WalkStore(t.Context(), store))
}
