package volumes_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/conformance/testbed"
)

const nobody = -1

// A modelled volume is one of which the test knows what is true.
type modelled struct {
	operated
	away   int       // which store it is in
	dirs   [2]string // where each node mounts it
	id     string    // "" if there is none
	owner  int       // the node that has taken it, or nobody
	device bool      // it has a device there; if not, it was given up to that node's journal
	mount  bool      // it is mounted there
	grown  bool
	holds  bool // its file has what was written last
}

func (m *modelled) String() string {
	switch {
	case m.id == "":
		return m.name + " (not there)"
	case m.owner == nobody:
		return m.name + " (free)"
	case m.mount:
		return fmt.Sprintf("%s (mounted by %d)", m.name, m.owner)
	case m.device:
		return fmt.Sprintf("%s (attached by %d)", m.name, m.owner)
	}
	return fmt.Sprintf("%s (in the journal of %d)", m.name, m.owner)
}

// unfit is the answer where the file system may not grow while it is mounted: who is not let do that has to mount it again.
const unfit = "its file system has not grown; unmount it and mount it again"

// works is the answer of a verb that does what it is for.
const works = ""

// answers returns what a verb on a node may answer: works, or an error that has one of these in it.
func (m *modelled) answers(verb string, node int) []string {
	here, there := m.owner == node, m.owner != node && m.owner != nobody
	switch verb {
	case "ls":
		return []string{works}
	case "create":
		if m.grown {
			return []string{"a volume of this name exists"}
		}
		return []string{works}
	case "detach", "abandon":
		if here && m.mount {
			return []string{"in use"}
		}
		return []string{works}
	case "umount", "keep":
		return []string{works}
	case "rm":
		if m.owner != nobody {
			return []string{"the volume is attached"}
		}
		return []string{works}
	}
	if m.id == "" {
		return []string{"no such volume"}
	}
	switch verb {
	case "attach", "mount":
		switch {
		case there && m.device:
			return []string{"in use by another node"}
		case there && m.class == "local":
			return []string{"in use by another node", "writes that were flushed may be lost"}
		case there: // whether the other one has a lease depends on its other volumes
			return []string{works, "in use by another node"}
		}
	case "grow":
		switch {
		case there || here && !m.device:
			return []string{works, "the volume is attached"}
		case here && m.mount:
			return []string{works, unfit}
		}
	}
	return []string{works} // inspect and fsck, too
}

// become notes what a verb that works makes of the volume.
func (m *modelled) become(verb string, node int) {
	here := m.owner == node
	switch verb {
	case "attach":
		m.owner, m.device = node, true
	case "mount":
		m.owner, m.device, m.mount = node, true, true
	case "detach", "umount":
		if here && m.device {
			m.owner, m.device, m.mount = nobody, false, false
		}
	case "abandon":
		if here {
			m.device = false
		}
	case "keep":
		if here {
			m.mount = false
		}
	case "grow":
		m.grown = true
	case "rm":
		m.id, m.grown, m.holds = "", false, false
	}
}

// A theatre is where operators are at work: nodes, stores, volumes.
type theatre struct {
	nodes   [2]*testbed.Stack
	volumes []*modelled
	outages [2]func() (back func() error, err error) // takes each store away
	copied  string                                   // the directory of the store that is copied
	rnd     *rand.Rand
	log     func(format string, args ...any)
}

// look finds out what is true of a volume, where that could not be known.
func (th *theatre) look(m *modelled) error {
	had := m.id
	m.id, m.owner, m.device, m.mount, m.grown = "", nobody, false, false, false
	for n, s := range th.nodes {
		l, err := m.settled(s)
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		if l.Error != "" { // a removal that was cut short
			if _, err := m.do(s, "rm", ""); err != nil {
				return err
			}
			m.id, m.grown, m.holds = "", false, false
			return nil
		}
		if l.Failed != "" { // it was taken away
			if err := unix.Unmount(m.dirs[n], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return err
			}
			if _, err := m.do(s, "detach", ""); err != nil {
				return err
			}
			return th.look(m)
		}
		m.id, m.grown = l.ID, l.Size > operatedSize
		if err := m.truthful(l, m.dirs[n]); err != nil {
			return fmt.Errorf("node %d: %w", n, err)
		}
		under, err := mounts.Under(filepath.Dir(m.dirs[n]))
		if err != nil {
			return err
		}
		switch {
		case l.Device != "" && m.device:
			return fmt.Errorf("both nodes have %s attached", m.name)
		case l.Device != "":
			m.owner, m.device, m.mount = n, true, len(under) > 0
		case l.Here && !m.device:
			m.owner = n
		}
	}
	if had != m.id { // another one, or none
		m.holds = false
	}
	return nil
}

// give gives a verb, and insists on its answer.
func (th *theatre) give(m *modelled, verb string, node int) error {
	was, may := m.String(), m.answers(verb, node)
	o, err := begin(th.nodes[node], m.verb(verb, m.dirs[node])...)
	if err == nil {
		err = o.wait()
	}
	if err == nil {
		err = o.sane()
	}
	if err != nil {
		return err
	}
	th.log("%s of %s on node %d: %d", verb, was, node, o.code)
	says := works
	if o.code != 0 {
		says = o.says.String()
	}
	if !slices.ContainsFunc(may, func(a string) bool { return a == works && says == works || a != works && strings.Contains(says, a) }) {
		return fmt.Errorf("%s of %s on node %d: want %q: %s", verb, was, node, may, o.answer())
	}
	if says != works && !strings.Contains(says, unfit) {
		return nil
	}
	made := verb == "create" && m.id == ""
	m.become(verb, node)
	if made {
		return th.look(m)
	}
	return th.use(m)
}

// use insists that a mounted volume has what was flushed last, and writes it anew.
func (th *theatre) use(m *modelled) error {
	if !m.mount {
		return nil
	}
	if m.holds {
		if err := m.operated.holds(m.dirs[m.owner]); err != nil {
			return err
		}
	}
	m.holds = true
	return m.write(m.dirs[m.owner])
}

// after what could not be foreseen of a verb that has ended.
func (th *theatre) after(m *modelled, o *operation, verb string) error {
	if err := o.wait(); err != nil {
		return err
	}
	if err := o.sane(); err != nil {
		return err
	}
	id := m.id
	if err := th.look(m); err != nil {
		return err
	}
	if id != m.id && (id == "") != (verb == "create") && (id != "") != (verb == "rm") {
		return fmt.Errorf("%s has the id %q, was %q: %s", m.name, m.id, id, o.answer())
	}
	th.log("%s is now %s", o.words, m)
	return th.use(m)
}

// interrupt gives a verb and Ctrl-C.
func (th *theatre) interrupt(m *modelled, verb string, node int) error {
	after := time.Duration(th.rnd.IntN(200)) * time.Millisecond
	th.log("%s of %s on node %d, and Ctrl-C after %v", verb, m, node, after)
	o, err := begin(th.nodes[node], m.verb(verb, m.dirs[node])...)
	if err != nil {
		return err
	}
	time.Sleep(after)
	o.interrupt()
	return th.after(m, o, verb)
}

// kill gives a verb and kills the node's remorad.
func (th *theatre) kill(m *modelled, verb string, node int) error {
	after := time.Duration(th.rnd.IntN(200)) * time.Millisecond
	th.log("%s of %s on node %d, and kill -9 of its remorad after %v", verb, m, node, after)
	o, err := begin(th.nodes[node], m.verb(verb, m.dirs[node])...)
	if err != nil {
		return err
	}
	time.Sleep(after)
	if err := errors.Join(th.nodes[node].StopRemorad(unix.SIGKILL), th.nodes[node].StartRemoradOnly()); err != nil {
		return err
	}
	if err := th.after(m, o, verb); err != nil {
		return err
	}
	for _, other := range th.volumes {
		if other != m && other.owner == node {
			if err := th.use(other); err != nil {
				return err
			}
		}
	}
	return nil
}

// lose takes a volume's store away, and gives a verb about that, and one about a volume of the other store, which must not notice.
func (th *theatre) lose(m *modelled, verb string, node int) error {
	th.log("%s of %s on node %d, whose store is away", verb, m, node)
	back, err := th.outages[m.away]()
	if err != nil {
		return err
	}
	back = sync.OnceValue(back)
	defer func() { _ = back() }() // whatever becomes of the rest
	o, err := begin(th.nodes[node], m.verb(verb, m.dirs[node])...)
	if err != nil {
		return err
	}
	for _, other := range th.volumes {
		if other.away != m.away {
			if err := th.give(other, th.verb(other), th.rnd.IntN(len(th.nodes))); err != nil {
				return fmt.Errorf("while the other store is away: %w", err)
			}
		}
	}
	time.Sleep(time.Duration(th.rnd.IntN(testbed.Rounds(1000, 6000))) * time.Millisecond)
	if err := back(); err != nil {
		return err
	}
	return th.after(m, o, verb)
}

// takeOver has the other node take a volume whose owner does not answer. The owner's volumes of that store may be gone when it wakes up.
func (th *theatre) takeOver(m *modelled) error {
	from, to := m.owner, 1-m.owner
	th.log("node %d stands still, and node %d takes %s", from, to, m)
	pid := th.nodes[from].RemoradPID()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return err
	}
	_, err := m.do(th.nodes[to], "mount", m.dirs[to])
	if err == nil && m.holds {
		err = m.operated.holds(m.dirs[to])
	}
	if err := errors.Join(err, unix.Kill(pid, unix.SIGCONT)); err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // until the owner knows
		l, err := m.listed(th.nodes[from])
		if err != nil {
			return err
		}
		if l.Failed != "" || l.Device == "" {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s was taken, and node %d goes on with it: %+v", m.name, from, *l)
		}
	}
	for _, other := range th.volumes {
		if err := th.look(other); err != nil {
			return err
		}
		if err := th.use(other); err != nil {
			return err
		}
	}
	return nil
}

// copy copies a store, which no node may take for the original.
func (th *theatre) copy(node int) error {
	copied := th.copied + ".copy"
	th.log("a copy of a store is looked at on node %d", node)
	if out, err := testbed.Output(context.Background(), nil, "cp", "-a", th.copied, copied); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	defer os.RemoveAll(copied)
	for _, args := range [][]string{{"ls"}, {"attach", th.volumes[0].name}} {
		o, err := begin(th.nodes[node], append(args, "--store", "file:"+copied)...)
		if err == nil {
			err = o.wait()
		}
		if err != nil {
			return err
		}
		if o.code != 1 || !strings.Contains(o.says.String(), "it is a copy of that store") {
			return errors.New(o.answer())
		}
	}
	return nil
}

// verb draws one that makes some sense.
func (th *theatre) verb(m *modelled) string {
	if m.id == "" && th.rnd.IntN(2) == 0 {
		return "create"
	}
	often := slices.Concat(operatorsVerbs, []string{"mount", "mount", "mount", "umount", "umount", "attach", "detach"})
	return often[th.rnd.IntN(len(often))]
}

// step does one thing.
func (th *theatre) step() error {
	m, node := th.volumes[th.rnd.IntN(len(th.volumes))], th.rnd.IntN(len(th.nodes))
	if m.owner != nobody && th.rnd.IntN(2) == 0 {
		node = m.owner
	}
	verb := th.verb(m)
	switch chance := th.rnd.IntN(100); {
	case chance < 15:
		return th.interrupt(m, verb, node)
	case chance < 23:
		return th.kill(m, verb, node)
	case chance < 29 && verb != "create": // which may make another store in its place
		return th.lose(m, verb, node)
	case chance < 32:
		return th.copy(node)
	case chance < 33 && testbed.Rounds(0, 1) > 0 && m.device && m.class == "remote": // which takes as long as a lease
		return th.takeOver(m)
	}
	return th.give(m, verb, node)
}

// end has each volume whole, and removes it.
func (th *theatre) end() error {
	for _, m := range th.volumes {
		if m.id == "" {
			continue
		}
		node := max(m.owner, 0)
		s, dir := th.nodes[node], m.dirs[node]
		for _, verb := range []string{"mount", "keep"} {
			if err := th.give(m, verb, node); err != nil {
				return err
			}
		}
		dev, err := m.do(s, "attach", dir)
		if err == nil {
			err = m.whole(s, dev)
		}
		for _, verb := range []string{"detach", "fsck", "rm"} {
			if err == nil {
				err = th.give(m, verb, node)
			}
		}
		if err != nil {
			return fmt.Errorf("at the end: %w", err)
		}
	}
	return nil
}

// TestVolumeOperators: operators on two nodes give verbs about three volumes in two stores, by chance, with Ctrl-C, kills of remorad,
// stores that are away and copies of one. A model of what is true says what each verb may answer, and what was flushed is there
// wherever a volume is mounted. At the end all volumes are whole.
func TestVolumeOperators(t *testing.T) {
	t.Parallel()
	srv := startS3(t, "minio")
	config := fmt.Sprintf("[volume]\njournal = \"16MiB\"\nlease = \"4s\"\ncredentials = %q\n", srv.credentials)
	dir := filepath.Join(t.TempDir(), "store")
	file, bucket := "file:"+dir, srv.url("operators")
	th := &theatre{copied: dir, rnd: rand.New(rand.NewPCG(testbed.Seed(t), 0)), log: t.Logf, volumes: []*modelled{
		{operated: operated{store: file, name: "one", class: "remote"}, away: 0},
		{operated: operated{store: bucket, name: "two", class: "local"}, away: 1},
		{operated: operated{store: bucket, name: "three", class: "remote"}, away: 1},
	}}
	th.outages[0] = func() (func() error, error) {
		return func() error { return os.Rename(dir+".aside", dir) }, os.Rename(dir, dir+".aside")
	}
	th.outages[1] = func() (func() error, error) {
		return func() error { return srv.process.Cmd.Process.Signal(unix.SIGCONT) }, srv.process.Cmd.Process.Signal(unix.SIGSTOP)
	}
	for i := range th.nodes {
		th.nodes[i] = testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: config})
	}
	for _, m := range th.volumes {
		m.owner = nobody
		for i := range th.nodes {
			m.dirs[i] = filepath.Join(t.TempDir(), "mnt")
		}
		t.Cleanup(func() {
			for _, dir := range m.dirs {
				if t.Failed() {
					_ = unix.Unmount(dir, unix.MNT_DETACH)
				}
			}
		})
		testbed.Must(t, th.give(m, "create", 0))
		for i := range th.nodes { // they know the stores from now on
			testbed.Must(t, th.give(m, "mount", i))
			testbed.Must(t, th.give(m, "umount", i))
		}
	}
	for i := range testbed.Rounds(50, 2000) {
		if err := th.step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	testbed.Must(t, th.end())
}
