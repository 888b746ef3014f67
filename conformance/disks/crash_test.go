package disks_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/testbed"
)

// fsyncing makes files whose names say their number, and one to which it appends. It prints what is on stable storage.
const fsyncing = `cd "$1" || exit 1
i=0
while [ $i -lt "$2" ]; do
	dd if=/dev/urandom of=new bs=$((i * 7919 % 60000 + 1)) count=1 conv=fsync status=none && mv new file-$i && sync . || exit 1
	echo file-$i $(sha256sum < file-$i)
	echo $i >> log && sync log || exit 1
	echo log $i
	i=$((i + 1))
done
`

// An acknowledgement is what a program was told to be on stable storage, after so many flushes of the device.
type acknowledgement struct {
	Flushes    int
	Name, What string
}

// recorded is what a test of power cuts knows of its recording.
type recorded struct {
	First, Last int // flushes before the program began, and at its end
	Acks        []acknowledgement
}

// TestDiskPowerCut: after a power cut at any flush, of what the disk was sent since whatever may be lost, torn and out
// of order, an ext4 on it is clean, and has everything that was fsynced.
func TestDiskPowerCut(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	var r recorded
	rec, seed := testbed.Replay(t, &r)
	if rec == nil {
		rec, r = recordFsyncs(t)
		seed = uint64(time.Now().UnixNano())
	}
	testbed.KeepIfFailed(t, rec, seed, r)
	t.Logf("seed %d, %d flushes, %d acknowledgements", seed, r.Last-r.First, len(r.Acks))
	if r.Last-r.First < len(r.Acks) {
		t.Errorf("%d flushes for %d calls of fsync", r.Last-r.First, len(r.Acks))
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	cuts := testbed.Rounds(80, 4*(r.Last-r.First))
	for range cuts {
		at := r.First + rnd.IntN(r.Last-r.First+1)
		afterPowerCut(t, rec, at, rnd, r.Acks)
		if t.Failed() {
			t.Fatalf("cut after flush %d", at)
		}
	}
	t.Logf("%d cuts", cuts)
}

// recordFsyncs has a program write to a disk and remember what it was told to be on stable storage.
func recordFsyncs(t *testing.T) (_ *faultdev.Recorder, r recorded) {
	t.Helper()
	rec, dev, dir, umount := testbed.RecordedExt4(t, 64<<20)
	unix.Sync()
	r.First = rec.Flushes()

	c, err := testbed.Command(t.Context(), "sh", "-c", fsyncing, "sh", dir, fmt.Sprint(testbed.Rounds(60, 500)))
	testbed.Must(t, err)
	out, err := c.StdoutPipe()
	testbed.Must(t, err)
	c.Stderr = os.Stderr
	testbed.Must(t, c.Start())
	for in := bufio.NewScanner(out); in.Scan(); {
		name, what, _ := strings.Cut(in.Text(), " ")
		r.Acks = append(r.Acks, acknowledgement{rec.Flushes(), name, strings.TrimSuffix(what, " -")})
	}
	testbed.Must(t, c.Wait())
	umount()
	testbed.FileSystems[0].Clean(t, dev)
	r.Last = rec.Flushes()
	return rec, r
}

// afterPowerCut looks at what a cut leaves.
func afterPowerCut(t *testing.T, rec *faultdev.Recorder, flushes int, rnd *rand.Rand, acks []acknowledgement) {
	t.Helper()
	testbed.CutAndLook(t, rec, flushes, rnd, func(dir string) {
		var lines int
		for _, a := range acks {
			if a.Flushes > flushes {
				break
			}
			if a.Name == "log" {
				lines++
				continue
			}
			p, err := os.ReadFile(filepath.Join(dir, a.Name))
			if sum := sha256.Sum256(p); err != nil || hex.EncodeToString(sum[:]) != a.What {
				t.Errorf("%s was fsynced before flush %d of %d and is not what it was: %d bytes, %v", a.Name, a.Flushes, flushes, len(p), err)
			}
		}
		log, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil && lines > 0 {
			t.Error(err)
		}
		var want strings.Builder
		for i := range lines {
			fmt.Fprintln(&want, i)
		}
		if !strings.HasPrefix(string(log), want.String()) {
			t.Errorf("the log has %d bytes and does not begin with the %d lines that were fsynced", len(log), lines)
		}
	})
}
