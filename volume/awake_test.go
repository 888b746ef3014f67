package volume

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// TestPausedProcess: a process that did not run for a while believes in no lease before it was renewed, whether its clock went on
// meanwhile or stood still and wall time has gone ahead.
func TestPausedProcess(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		clock, wall time.Duration // by how much each goes ahead
		certain     bool
	}{
		"its clock went on":             {2 * time.Second, 2 * time.Second, false},
		"its clock stood still":         {0, 2 * time.Second, false},
		"wall time was put back":        {0, -time.Hour, true},
		"it was not away for a second":  {700 * time.Millisecond, 700 * time.Millisecond, true},
		"wall time was put right a bit": {0, 900 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, sure := newMarked(t)
				var clock, wall atomic.Int64
				began := time.Now()
				at := newSimNode(t)
				m := NewMember(sure, MemberOptions{
					ID: at.id, Incarnation: NewID(), Diary: &at.diary, TTL: 12 * time.Second,
					Clock: func() time.Duration { return time.Since(began) + time.Duration(clock.Load()) },
					Wall:  func() time.Duration { return time.Since(began) + time.Duration(wall.Load()) },
				})
				if err := m.Acquire(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				before := m.state.Counter
				st.SetFaults(simstore.Faults{Outage: store.ErrAway})
				clock.Add(int64(c.clock))
				wall.Add(int64(c.wall))
				if margin, _ := m.Margin(); m.unexpired() != c.certain {
					t.Errorf("certain: %v, for %v", !c.certain, margin)
				}
				st.SetFaults(simstore.Faults{})
				time.Sleep(time.Second)
				if err := m.Wait(t.Context()); err != nil || !m.unexpired() {
					t.Errorf("a second later: %v", err)
				}
				if renewed := m.state.Counter > before; renewed == c.certain {
					t.Errorf("renewed within a second: %v", renewed)
				}
				m.Release()
			})
		})
	}
}
