package main

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/version"
)

// TestHelp: every command has help that names it, and no command that needs arguments runs without.
func TestHelp(t *testing.T) {
	u := newUser(t)
	contains(t, u.run().ok(), "Available Commands", "snapctl doctor")
	contains(t, u.run("--version").ok(), version.String())
	for _, args := range [][]string{
		{"pull"}, {"convert"}, {"fetch"}, {"status"}, {"cache", "ls"}, {"cache", "pin"}, {"cache", "unpin"}, {"cache", "prune"}, {"detach"},
		{"doctor"},
		{"record"}, {"profile", "show"}, {"profile", "merge"}, {"profile", "push"}, {"profile", "pull"}, {"profile", "rm"},
		{"index", "create"}, {"index", "push"}, {"index", "ls"}, {"index", "show"}, {"index", "rm"}, {"trace"},
		{"dev", "serve"}, {"dev", "attach"}, {"dev", "detach"}, {"dev", "ls"},
		{"volume", "init"}, {"volume", "probe"}, {"volume", "create"}, {"volume", "ls"}, {"volume", "inspect"}, {"volume", "attach"},
		{"volume", "detach"},
		{"volume", "mount"}, {"volume", "umount"}, {"volume", "resize"}, {"volume", "rm"}, {"volume", "fsck"}, {"volume", "bench"},
		{"volume", "journal", "ls"}, {"volume", "journal", "salvage"}, {"volume", "journal", "rm"}, {"volume", "drain"},
	} {
		words := "snapctl"
		for _, a := range args {
			words += " " + a
		}
		contains(t, u.run(append(args, "--help")...).ok(), "Usage:\n  "+words, "--remora socket")
		u.run(append(args, "--no-such-flag")...).fails(2, "unknown flag: --no-such-flag (see "+words+" --help)")
		if words != "snapctl profile merge" { // which takes any number
			u.run(append(args, "one", "two", "three", "four")...).fails(2, words+" --help")
		}
	}
	for _, group := range []string{"cache", "profile", "index", "dev", "volume"} {
		contains(t, u.run(group).ok(), "Available Commands")
	}
	contains(t, u.run("help", "volume", "rm").ok(), "Usage:\n  snapctl volume rm NAME")
	contains(t, u.run("volume", "help", "rm").ok(), "Usage:\n  snapctl volume rm NAME")
}

// TestUnknownCommands: a word that is no command is a mistake in every group, and the commands that come near it are named.
func TestUnknownCommands(t *testing.T) {
	u := newUser(t)
	root := u.app(nil, nil).command()
	cli.Prepare(root)
	groups := 0
	for c := range cli.All(root) {
		if !c.HasSubCommands() {
			continue
		}
		groups++
		args := strings.Fields(c.CommandPath())[1:]
		for _, rest := range [][]string{{"qqqq"}, {"qqqq", "--store", "x"}, {"--json", "qqqq"}, {"help", "qqqq"}} {
			r := u.run(append(slices.Clone(args), rest...)...)
			r.fails(2, `unknown command "qqqq" for "`+c.CommandPath()+`": there are `+c.Commands()[0].Name(), c.CommandPath()+" --help")
			if r.stdout != "" {
				t.Errorf("%q printed %q", r.args, r.stdout)
			}
		}
	}
	if groups < 7 { // with snapctl itself and its completion
		t.Errorf("only %d groups were found", groups)
	}
	u.run("volume", "attahc", "data").fails(2, "did you mean attach?")
	u.run("volume", "unmont", "data").fails(2, "did you mean umount or unmount?")
	u.run("volum").fails(2, "did you mean volume?")
	u.run("help", "volume", "fly").fails(2, `unknown command "fly" for "snapctl volume"`)
}

// TestSynonyms: the words that people try for a verb are the verb.
func TestSynonyms(t *testing.T) {
	u := newUser(t)
	for words, verb := range map[string]string{
		"volume list": "volume ls", "volume delete": "volume rm", "volume remove": "volume rm", "volume unmount": "volume umount",
		"volume show": "volume inspect", "volume status": "volume inspect", "volume check": "volume fsck", "dev list": "dev ls",
		"cache list": "cache ls", "index list": "index ls", "index delete": "index rm", "index inspect": "index show",
		"profile delete": "profile rm", "list": "status", "ls": "status",
	} {
		contains(t, u.run(append(strings.Fields(words), "--help")...).ok(), "Usage:\n  snapctl "+verb)
	}
	contains(t, u.run("index", "show", "--help").ok(), "Usage:\n  snapctl index show") // a command before a synonym
}

// TestVolumeJSON: every verb of volumes prints one JSON object with --json, and nothing else on stdout.
func TestVolumeJSON(t *testing.T) {
	u := newUser(t)
	f := newRemorad(u)
	disk := u.file("disk", strings.Repeat("x", 64<<20))
	volumes := []*controlv1.Volume{{Name: "data", Store: "file:/s", Here: true, SizeBytes: 1 << 30}}
	f.set(func() {
		f.device, f.steps = disk, []string{"a step"}
		f.details = &controlv1.InspectVolumeResponse{}
		f.report, f.rebuilt = &controlv1.VolumeReport{}, &controlv1.RebuiltVolume{Id: strings.Repeat("0", 32), DamagedId: strings.Repeat("1", 32)}
	})
	calls := map[string][][]string{
		"init": {{"file:/s"}}, "probe": {{"file:/s"}}, "create": {{"new", "1G"}, {"data", "1G"}}, "ls": {{}}, "inspect": {{"data"}},
		"attach": {{"data"}}, "detach": {{"data"}, {"none"}}, "umount": {{"data"}, {"--keep-attached", "data"}, {"none"}},
		"resize": {{"data", "2G"}}, "rm": {{"data"}, {"--dry-run", "data"}, {"none"}}, "fsck": {{"data"}, {"--rebuild-into", "w", "data"}},
		"bench":   {{"--size", "16M", "--time", "1ms"}},
		"drain":   {{}},
		"journal": {{"ls"}, {"salvage", "5f2a", "--into", "old"}, {"rm", "5f2a"}},
		"mount":   {}, // needs a block device: conformance/volumes
	}
	for _, c := range u.app(nil, nil).volumeCommand().Commands() {
		all, ok := calls[c.Name()]
		if !ok {
			t.Errorf("no call of volume %s is here to be tried with --json", c.Name())
		}
		for _, args := range all {
			f.set(func() {
				f.volumes = nil
				for _, v := range volumes {
					f.volumes = append(f.volumes, proto.CloneOf(v))
				}
			})
			args = append([]string{"volume", c.Name(), "--json"}, args...)
			if got := decode[map[string]any](u.run(args...)); len(got) == 0 {
				t.Errorf("%q printed an empty object", args)
			}
		}
	}
}

// TestNobodyAnswers: without remorad, whatever needs it says what to do.
func TestNobodyAnswers(t *testing.T) {
	u := newUser(t)
	file := u.file("disk.img", "x")
	for _, args := range [][]string{
		{"pull", "app"}, {"status"}, {"cache", "ls"}, {"cache", "pin", "app"}, {"cache", "unpin", "app"}, {"cache", "prune"}, {"detach", "--all"},
		{"dev", "attach", file}, {"dev", "detach", file}, {"dev", "ls"}, {"volume", "init", "file:x"}, {"volume", "probe", "file:x"},
		{"volume", "create", "v", "1G"}, {"volume", "ls"}, {"volume", "inspect", "v"}, {"volume", "attach", "v"}, {"volume", "detach", "v"},
		{"volume", "mount", "v", u.path("dir")}, {"volume", "umount", "v"}, {"volume", "resize", "v", "2G"}, {"volume", "rm", "v"},
		{"volume", "fsck", "v"},
		{"volume", "fsck", "--rebuild-into", "w", "v"}, {"volume", "bench"},
		{"volume", "journal", "ls"}, {"volume", "journal", "salvage", "5f", "--into", "w"}, {"volume", "journal", "rm", "5f"},
		{"volume", "drain"},
	} {
		u.run(args...).fails(1, "remorad does not answer on "+u.remorad, "systemctl status remorad")
	}
}
