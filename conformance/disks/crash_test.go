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

	"github.com/remora-storage/remora/blockdev"
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
	flushes    int
	name, what string
}

// TestDiskPowerCut: after a power cut at any flush, of what the disk was sent since whatever may be lost, torn and out
// of order, an ext4 on it is clean, and has everything that was fsynced.
func TestDiskPowerCut(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	rec, dev, dir, umount := testbed.RecordedExt4(t, 64<<20)
	unix.Sync()
	first := rec.Flushes()

	c, err := testbed.Command(t.Context(), "sh", "-c", fsyncing, "sh", dir, fmt.Sprint(testbed.Rounds(60, 500)))
	testbed.Must(t, err)
	out, err := c.StdoutPipe()
	testbed.Must(t, err)
	c.Stderr = os.Stderr
	testbed.Must(t, c.Start())
	var acks []acknowledgement
	for in := bufio.NewScanner(out); in.Scan(); {
		name, what, _ := strings.Cut(in.Text(), " ")
		acks = append(acks, acknowledgement{rec.Flushes(), name, strings.TrimSuffix(what, " -")})
	}
	testbed.Must(t, c.Wait())
	umount()
	testbed.FileSystems[0].Clean(t, dev)
	last := rec.Flushes()
	t.Logf("%d flushes, %d acknowledgements", last-first, len(acks))
	if last-first < len(acks) {
		t.Errorf("%d flushes for %d calls of fsync", last-first, len(acks))
	}

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	cuts := testbed.Rounds(200, 4*(last-first))
	for range cuts {
		at := first + rnd.IntN(last-first+1)
		afterPowerCut(t, rec, at, rnd, acks)
		if t.Failed() {
			t.Fatalf("cut after flush %d", at)
		}
	}
	t.Logf("%d cuts", cuts)
}

// afterPowerCut looks at what a cut leaves.
func afterPowerCut(t *testing.T, rec *blockdev.Recorder, flushes int, rnd *rand.Rand, acks []acknowledgement) {
	t.Helper()
	testbed.CutAndLook(t, rec, flushes, rnd, func(dir string) {
		var lines int
		for _, a := range acks {
			if a.flushes > flushes {
				break
			}
			if a.name == "log" {
				lines++
				continue
			}
			p, err := os.ReadFile(filepath.Join(dir, a.name))
			if sum := sha256.Sum256(p); err != nil || hex.EncodeToString(sum[:]) != a.what {
				t.Errorf("%s was fsynced before flush %d of %d and is not what it was: %d bytes, %v", a.name, a.flushes, flushes, len(p), err)
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
