package volumes_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/testbed"
)

// starts are what a volume is when two verbs about it are raced, each with the verbs that make it so of one that is attached and not
// mounted.
var starts = map[string][]string{
	"none":     {"detach", "rm"},
	"new":      {"detach", "rm", "create"},
	"detached": {"detach"},
	"attached": {},
	"mounted":  {"mount"},
}

// A race is two verbs about one volume, of which the second begins while the first is under way.
type race struct {
	start, first, second string
	later                time.Duration // until the second begins
	interrupt            int           // which of them gets a Ctrl-C; 0 for none
	interrupted          time.Duration // until then
}

func (r race) String() string {
	s := fmt.Sprintf("%s, then %s after %v, of a volume that is %s", r.first, r.second, r.later, r.start)
	if r.interrupt > 0 {
		s += fmt.Sprintf("; Ctrl-C of the %d. after %v", r.interrupt, r.interrupted)
	}
	return s
}

// raced are all pairs, in either order.
var raced = testbed.Combinations(operatorsVerbs, operatorsVerbs)

// drawRaces returns a race of each pair, in an order, and with all else, by chance.
func drawRaces(rnd *rand.Rand) (all []race) {
	kinds := slices.Sorted(maps.Keys(starts))
	for _, i := range rnd.Perm(len(raced)) {
		all = append(all, race{
			start: kinds[rnd.IntN(len(kinds))], first: raced[i][0], second: raced[i][1], later: time.Duration(rnd.IntN(120)) * time.Millisecond,
			interrupt: max(0, rnd.IntN(5)-2), interrupted: time.Duration(rnd.IntN(150)) * time.Millisecond,
		})
	}
	return all
}

// A lane is a volume on which one pair of verbs is raced at a time.
type lane struct {
	*operated
	dir    string // where it is mounted
	now    race
	before *listing // when the race began
	after  *listing
}

// prepare makes the volume, which is attached and not mounted, what its race begins with.
func (l *lane) prepare(s *testbed.Stack) (err error) {
	for _, verb := range starts[l.now.start] {
		if _, err := l.do(s, verb, l.dir); err != nil {
			return err
		}
	}
	l.before, err = l.settled(s)
	return err
}

// run races the pair.
func (l *lane) run(s *testbed.Stack) error {
	var both [2]*operation
	for i, verb := range []string{l.now.first, l.now.second} {
		if i == 1 {
			time.Sleep(l.now.later)
		}
		var err error
		if both[i], err = begin(s, l.verb(verb, l.dir)...); err != nil {
			return err
		}
		if l.now.interrupt == i+1 {
			defer time.AfterFunc(l.now.interrupted, both[i].interrupt).Stop()
		}
	}
	errs := []error{both[0].wait(), both[1].wait()}
	for i, o := range both {
		if errs[i] == nil {
			errs[i] = o.sane()
		}
	}
	return errors.Join(errs...)
}

// judge insists that what became of the volume may have become of it.
func (l *lane) judge() error {
	had := l.before != nil
	is := l.after != nil && l.after.Error == ""
	may := func(verb string) bool { return l.now.first == verb || l.now.second == verb }
	switch {
	case had && !is && !may("rm"):
		return fmt.Errorf("the volume has gone: %+v", l.after)
	case had && is && l.after.ID != l.before.ID && !may("rm"):
		return fmt.Errorf("another volume is in its place: %+v, was %+v", l.after, l.before)
	case !had && is && !may("create"):
		return fmt.Errorf("nobody made it: %+v", l.after)
	case is && l.after.State == "absent" && l.after.Here && !may("abandon"):
		return fmt.Errorf("this node owns it, and does nothing with it: %+v", l.after)
	case is && l.after.Failed != "":
		return fmt.Errorf("it has failed: %+v", l.after)
	}
	return nil
}

// proceed insists that the next verb works and that the volume is whole. It leaves it attached and not mounted.
func (l *lane) proceed(s *testbed.Stack) error {
	is := l.after
	if is != nil && is.Error != "" { // a removal was cut short, and goes on
		if _, err := l.do(s, "rm", l.dir); err != nil {
			return err
		}
		is = nil
	}
	if is == nil {
		if _, err := l.do(s, "create", l.dir); err != nil {
			return err
		}
	}
	if _, err := l.do(s, "mount", l.dir); err != nil {
		return err
	}
	if is != nil && l.before != nil && is.ID == l.before.ID && l.now.start != "new" {
		if err := l.holds(l.dir); err != nil {
			return err
		}
	}
	if err := l.write(l.dir); err != nil {
		return err
	}
	if _, err := l.do(s, "keep", l.dir); err != nil {
		return err
	}
	dev, err := l.do(s, "attach", l.dir)
	if err != nil {
		return err
	}
	return l.whole(s, dev)
}

// TestVolumePairs: every verb raced with every other one on one volume, interrupted, and with remorad killed at some step of them:
// afterwards ls says what is so, the volume is whole, nothing that was flushed is missing, and the next verb works.
func TestVolumePairs(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Bare: true, LogLevel: "info", Config: "[volume]\njournal = \"16MiB\"\nlease = \"4s\"\n"})
	seed := testbed.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	store := "file:" + filepath.Join(t.TempDir(), "store")
	lanes := make([]*lane, 5)
	for i := range lanes {
		class := []string{"remote", "local"}[i%2]
		lanes[i] = &lane{
			operated: &operated{store: store, name: fmt.Sprintf("v%d", i), class: class},
			dir:      filepath.Join(t.TempDir(), "mnt"),
		}
	}
	t.Cleanup(func() {
		for _, l := range lanes {
			if t.Failed() {
				_ = unix.Unmount(l.dir, unix.MNT_DETACH)
			}
		}
	})
	each := func(do func(*lane) error) error {
		var all errgroup.Group
		for _, l := range lanes {
			all.Go(func() error {
				if err := do(l); err != nil {
					return fmt.Errorf("%s (%s): %w", l.now, l.class, err)
				}
				return nil
			})
		}
		return all.Wait()
	}
	proceed := func() { testbed.Must(t, each(func(l *lane) error { return l.proceed(s) })) }
	proceed()
	draws := drawRaces(rnd)
	rounds := 6
	if testbed.Rounds(0, 1) > 0 { // each pair in each kind of round
		draws = slices.Concat(draws, drawRaces(rnd), drawRaces(rnd))
		rounds = len(draws) / len(lanes)
	}
	for round := range rounds {
		var now []string
		for i, l := range lanes {
			l.now = draws[round*len(lanes)+i]
			now = append(now, l.now.String())
		}
		kill := []string{"not killed", "killed after a while", "killed at a step"}[(round+round*len(lanes)/len(raced))%3]
		after := time.Duration(rnd.IntN(250)) * time.Millisecond
		step, nth := volumeSteps[rnd.IntN(len(volumeSteps))], 1+rnd.IntN(40)
		t.Logf("round %d, remorad %s (%v, or the %d. %s):\n\t%s", round, kill, after, nth, step, strings.Join(now, "\n\t"))
		testbed.Must(t, each(func(l *lane) error { return l.prepare(s) }))
		raced := make(chan error, 1)
		go func() { raced <- each(func(l *lane) error { return l.run(s) }) }()
		switch kill {
		case "killed after a while":
			time.Sleep(after)
			testbed.Must(t, s.StopRemorad(unix.SIGKILL))
			testbed.Must(t, s.StartRemoradOnly())
		case "killed at a step":
			killAtStep(t, s, step, nth, time.Second)
			testbed.Must(t, s.StartRemoradOnly())
		}
		testbed.Must(t, <-raced)
		testbed.Must(t, each(func(l *lane) (err error) {
			l.after, err = l.settled(s)
			return err
		}))
		testbed.Must(t, each(func(l *lane) error { return errors.Join(l.judge(), l.truthful(l.after, l.dir)) }))
		mustHaveDevices(t, s, lanes)
		proceed()
	}
	for _, verb := range []string{"detach", "fsck", "rm"} { // what was given up to a journal stays written down in the store
		testbed.Must(t, each(func(l *lane) error {
			_, err := l.do(s, verb, "")
			return err
		}))
	}
}

// mustHaveDevices insists that the kernel has the devices that ls has told of, and no others of this node.
func mustHaveDevices(t *testing.T, s *testbed.Stack, lanes []*lane) {
	t.Helper()
	var want, got []string
	for _, l := range lanes {
		if l.after != nil && l.after.Device != "" {
			want = append(want, l.after.Device)
		}
	}
	all, err := blockdev.LoopFiles()
	testbed.Must(t, err)
	for _, l := range all {
		if strings.HasPrefix(l.File, s.Root+"/") {
			got = append(got, l.Dev)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Fatalf("the kernel has the devices %q, ls says %q", got, want)
	}
}
