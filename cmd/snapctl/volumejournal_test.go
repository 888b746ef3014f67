package main

import (
	"strings"
	"testing"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
)

// TestVolumeJournalCommands: what journals hold is told as far as it is known, and what a verb asks for is what was said.
func TestVolumeJournalCommands(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	id := strings.Repeat("5f", 16)
	f.set(func() {
		f.journals = []*controlv1.Journal{
			{Id: id, Volume: "data", Store: "file:/s", State: "orphan", Reason: "node 1 has it", Epoch: 4, Writes: 3, Bytes: 12 << 10},
			{Id: id, VolumeId: "77", State: "unknown", Reason: "no answer", Writes: 3, Bytes: 5 << 20, AtMost: true},
			{Id: id, Volume: "kept", State: "kept"},
			{Id: id, Volume: "used", State: "in use", Writes: 3},
		}
		f.rebuilt = &controlv1.RebuiltVolume{Id: strings.Repeat("0", 32), DamagedId: strings.Repeat("1", 32), Name: "old", SizeBytes: 1 << 30}
	})
	out := u.run("volume", "journal", "ls").ok()
	for i, want := range []string{"12KiB", "at most 5MiB", "nothing", " - "} {
		if line := strings.Split(out, "\n")[i+1]; !strings.Contains(line, want) || strings.Contains(line, id) {
			t.Errorf("%q: want %q, and a short id", line, want)
		}
	}
	contains(t, out, "orphan: node 1 has it", "unknown: no answer", "77")
	contains(t, u.run("volume", "journal", "salvage", id, "--into", "old").ok(),
		"writes 7 to 9 are in journal 5f5f5f5f5f5f, 3MiB", "old: 1GiB")
	if r := last[*controlv1.SalvageJournalRequest](t, f); r.Into != "old" || r.Journal != id {
		t.Errorf("asked for %v", r)
	}
	u.run("volume", "journal", "salvage", id).fails(2, "into")
	u.run("volume", "journal", "salvage", "--into", "old").fails(2, "one JOURNAL")
	contains(t, u.run("volume", "journal", "rm", "--accept-loss", id).ok(), "journal 5f5f5f5f5f5f of data removed, 1GiB are free")
	if r := last[*controlv1.RemoveJournalRequest](t, f); !r.AcceptLoss {
		t.Errorf("asked for %v", r)
	}
}
