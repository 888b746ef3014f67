package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume/host"
)

// TestRecordsOfEarlierVersion: a node is who it was, and knows what it had attached, by what the version of commit 9966ce9 wrote down.
func TestRecordsOfEarlierVersion(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		host.NodeFile.Name: "{\n  \"node\": \"78478b8d04740964df13d0483080dcf0\",\n  \"machine\": \"3d1219c7c4c5404aaa1f6d2a48adfda4\"\n}",
		host.RecordFile.Name: "{\n  \"version\": 1,\n  \"names\": {\n    \"data\": \"file:///srv/volumes\"\n  },\n  \"attached\": [\n    {\n" +
			"      \"id\": \"56c95d13f8481cfd2eebdf57fb98e03f\",\n      \"name\": \"data\",\n      \"store\": \"file:///srv/volumes\",\n" +
			"      \"size\": 1073741824\n    }\n  ]\n}",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, err := host.Open(host.Options{Root: root, OpenStore: func(string) (store.Store, error) { return nil, errors.New("away") }})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if got := h.NodeID().String(); got != "78478b8d04740964df13d0483080dcf0" {
		t.Errorf("the node is %s now", got)
	}
	if urls := h.StoresOf("data"); len(urls) != 1 || urls[0] != "file:///srv/volumes" {
		t.Errorf("the volume is in %v", urls)
	}
	all := h.Attached()
	if len(all) != 1 || all[0].ID.String() != "56c95d13f8481cfd2eebdf57fb98e03f" || all[0].Name != "data" || all[0].Size != 1<<30 {
		t.Errorf("attached: %+v", all)
	}
	if aside, err := durable.ListDamaged(root, host.RecordFile, host.NodeFile); err != nil || len(aside) > 0 {
		t.Errorf("set aside: %+v, %v", aside, err)
	}
}
