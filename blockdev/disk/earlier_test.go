package disk_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/internal/durable"
)

// TestRecordOfEarlierVersion: a disk that the version of commit 9966ce9 wrote down is served on, and numbers go on behind those that it
// had given.
func TestRecordOfEarlierVersion(t *testing.T) {
	root, k, s := t.TempDir(), newKernel(), newStore()
	const record = "{\n  \"version\": 1,\n  \"next_node\": 7,\n  \"disks\": [\n    {\n      \"source\": \"a\",\n" +
		"      \"read_only\": false,\n      \"sector\": 512,\n      \"size\": 1048576,\n      \"node\": 5\n    }\n  ]\n}"
	if err := os.WriteFile(filepath.Join(root, disk.RecordFile.Name), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	k.devices[5] = "/dev/loop5"
	d := open(t, root, k, s, true)
	if a := attach(t, d, "a"); a.Node != 5 || a.Path != "/dev/loop5" || a.Reason != "" {
		t.Errorf("the disk that was attached: %+v", a)
	}
	if b := attach(t, d, "b"); b.Node < 7 {
		t.Errorf("number %d was given before", b.Node)
	}
	if aside, err := durable.ListDamaged(root, disk.RecordFile); err != nil || len(aside) > 0 {
		t.Errorf("set aside: %+v, %v", aside, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
