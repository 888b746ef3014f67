package mount_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/volume/mount"
)

// ext returns a device with the superblock of an ext4 of as many blocks of 4 KiB.
func ext(blocks uint32, state uint16) []byte {
	p := make([]byte, 128<<10)
	sb := p[1024:]
	le := binary.LittleEndian
	le.PutUint32(sb[0x4:], blocks)
	le.PutUint32(sb[0x18:], 2)     // blocks of 4 KiB
	le.PutUint32(sb[0x20:], 32768) // in a group
	le.PutUint32(sb[0x28:], 8192)  // inodes in one
	le.PutUint16(sb[0x38:], 0xef53)
	le.PutUint16(sb[0x3a:], state)
	le.PutUint16(sb[0x58:], 256)  // bytes of an inode
	le.PutUint32(sb[0x5c:], 0x4)  // it has a journal
	le.PutUint32(sb[0x60:], 0x40) // and extents
	return p
}

func with(at int, text string, more ...any) []byte {
	p := make([]byte, 128<<10)
	copy(p[at:], text)
	for i := 0; i < len(more); i += 2 {
		copy(p[more[i].(int):], more[i+1].(string))
	}
	return p
}

// TestProbe knows what is at the fixed places; what differs in one flag, too.
func TestProbe(t *testing.T) {
	const end = 128 << 10
	noJournal := ext(1000, 1)
	noJournal[1024+0x5c] = 0
	unclean := bytes.Clone(noJournal)
	unclean[1024+0x3a] = 0
	huge := ext(1, 1)
	binary.LittleEndian.PutUint32(huge[1024+0x60:], 0x40|0x80)
	binary.LittleEndian.PutUint32(huge[1024+0x150:], 1)
	xfs := with(0, "XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x10\x00")
	for name, c := range map[string]struct {
		dev     []byte
		kind    string
		size    int64
		suspect bool
	}{
		"nothing":         {make([]byte, end), "", 0, false},
		"a small nothing": {make([]byte, 512), "", 0, false},
		"ext4":            {ext(1000, 1), "ext4", 1000 << 12, false},
		// The kernel replays the journal of one that was not unmounted.
		"ext4, in use":                  {ext(1000, 0), "ext4", 1000 << 12, false},
		"ext4, with errors":             {ext(1000, 1|2), "ext4", 1000 << 12, true},
		"ext4, no journal":              {noJournal, "ext4", 1000 << 12, false},
		"ext4, no journal, in use":      {unclean, "ext4", 1000 << 12, true},
		"ext4 of 2^32+1 blocks":         {huge, "ext4", (1<<32 + 1) << 12, false},
		"xfs":                           {xfs, "xfs", 16 << 20, false},
		"btrfs":                         {with(64<<10+0x40, "_BHRfS_M", 64<<10+0x70, "\x00\x00\x00\x01"), "btrfs", 16 << 20, false},
		"swap":                          {with(4096-10, "SWAPSPACE2"), "swap", 0, false},
		"swap of large pages":           {with(64<<10-10, "SWAPSPACE2"), "swap", 0, false},
		"LUKS":                          {with(0, "LUKS\xba\xbe\x00\x02"), "crypto_LUKS", 0, false},
		"LUKS, the second header":       {with(0x4000, "SKUL\xba\xbe\x00\x02"), "crypto_LUKS", 0, false},
		"two headers of LUKS":           {with(0, "LUKS\xba\xbe", 0x4000, "SKUL\xba\xbe"), "crypto_LUKS", 0, false},
		"LVM":                           {with(512, "LABELONE", 512+24, "LVM2 001"), "LVM2_member", 0, false},
		"a GPT":                         {with(510, "\x55\xaa", 512, "EFI PART"), "gpt", 0, false},
		"a GPT of sectors of 4 KiB":     {with(4096, "EFI PART"), "gpt", 0, false},
		"a GPT's backup":                {with(end-512, "EFI PART"), "gpt", 0, false},
		"a table of partitions":         {with(510, "\x55\xaa", 446, "\x80"), "dos", 0, false},
		"the code of a boot loader":     {with(510, "\x55\xaa", 446, "\x12"), "", 0, false},
		"a file system in a boot block": {with(510, "\x55\xaa", 0, "XFSB"), "xfs", 0, false},
	} {
		got, err := mount.Probe(bytes.NewReader(c.dev), int64(len(c.dev)))
		table := c.kind == "gpt" || c.kind == "dos"
		if err != nil || got.Kind != c.kind || got.Size != c.size || got.Suspect != c.suspect || got.Table != table {
			t.Errorf("%s: got %+v, %v; want %q of %d bytes, suspect: %v", name, got, err, c.kind, c.size, c.suspect)
		}
	}
	both := append(ext(10, 1)[:4096], with(0, "")...)
	copy(both, "XFSB")
	if _, err := mount.Probe(bytes.NewReader(both), int64(len(both))); !errors.Is(err, mount.ErrAmbiguous) {
		t.Errorf("two file systems: %v", err)
	}
}

// failing is a device of which a range cannot be read, or ends too early.
type failing struct {
	io.ReaderAt
	from, to int64
	err      error
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off < f.to && off+int64(len(p)) > f.from {
		return int(max(0, f.from-off)), f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

// TestProbeUnreadable: what cannot be read is never a device without a signature.
func TestProbeUnreadable(t *testing.T) {
	dev := make([]byte, 1<<20)
	for _, size := range []int64{0, -1, 2 << 20} { // a device that has gone, one that is shorter than it said
		if c, err := mount.Probe(bytes.NewReader(dev), size); err == nil {
			t.Errorf("%d bytes: %+v", size, c)
		}
	}
	for _, err := range []error{unix.EIO, io.EOF, nil} {
		for from := int64(0); from < 1<<20; from += 4096 {
			asked := from < 68<<10 || from >= 1<<20-12<<10
			c, perr := mount.Probe(failing{bytes.NewReader(dev), from, from + 4096, err}, 1<<20)
			if asked && perr == nil {
				t.Errorf("%v at %d: %+v", err, from, c)
			}
			if asked && err == unix.EIO && !errors.Is(perr, unix.EIO) {
				t.Errorf("%v at %d: %v", err, from, perr)
			}
		}
	}
	if _, _, err := mount.ProbeDevice(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no device: %v", err)
	}
}

// mostProbe is what knowing a device may take: its reads have 80 KiB.
var mostProbe = heap.Cost{Memory: 256 << 10, CPU: time.Second}

// FuzzProbe: whatever is on a device, telling what it is ends, and costs little.
func FuzzProbe(f *testing.F) {
	for _, p := range [][]byte{ext(1000, 1), with(0, "XFSB"), with(64<<10+0x40, "_BHRfS_M"), with(510, "\x55\xaa"), {0}} {
		f.Add(p, int64(len(p)))
	}
	f.Add([]byte(strings.Repeat("\xff", 128<<10)), int64(128<<10))
	f.Fuzz(func(t *testing.T, p []byte, size int64) {
		if size < 0 || size > int64(len(p)) {
			size = int64(len(p))
		}
		mostProbe.Allocates(t, func() int64 {
			c, err := mount.Probe(bytes.NewReader(p), size)
			if err == nil && c.Size < 0 {
				t.Errorf("%+v", c)
			}
			return 0
		})
	})
}
