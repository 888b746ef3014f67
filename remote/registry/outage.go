package registry

import (
	"fmt"
	"net/http"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/internal/fair"
)

// A host that answers 5xx and names no time (RFC 9110, section 15.6) may be overloaded, away, or broken for one blob. So it is left
// alone, but only by the repository that got these answers: nobody can keep others from a host by what he has it fail at. The waits are
// those of a round (Retry), shared by all requests of the repository there. So is a server of tokens, by those who ask it for the same.

// An outage is what a host answers to one repository, or to who asks for a token.
type outage struct {
	era      int64 // Registry.era, when it began
	failures int   // in a row
	status   int   // of the last
	waits    backoff.Backoff
	since    time.Time // when it was left alone last
	until    time.Time // it is left alone
}

// fails reports whether a status is one of a server that may serve the same request later.
func fails(status int) bool {
	return status >= http.StatusInternalServerError && status != http.StatusNotImplemented
}

// outLocked returns why a host is not asked now for a repository, or nil.
func (p *pace) outLocked(host string, who fair.User) error {
	known, ok := p.outages.Get(who)
	if !ok {
		return nil
	}
	o := known.(*outage)
	wait := time.Until(o.until)
	if wait <= 0 || o.era != p.era.Load() {
		return nil
	}
	why := fmt.Sprintf("since it answers %d %s", o.status, http.StatusText(o.status))
	return &restError{StatusError: &StatusError{Host: host, Status: o.status, RetryAfter: wait}, why: why}
}

// heardLocked notes an answer without a time to a repository's request that began at a time.
func (p *pace) heardLocked(who fair.User, status int, began, now time.Time) {
	if !fails(status) {
		p.outages.Remove(who)
		return
	}
	era := p.era.Load()
	known, ok := p.outages.Get(who)
	if !ok || known.(*outage).era != era {
		known = &outage{era: era, waits: p.waits}
		p.outages.Add(who, known)
	}
	o := known.(*outage)
	o.failures++
	o.status = status
	if o.failures < failuresHold || began.Before(o.since) { // requests that were under way together say one thing
		return
	}
	o.since, o.until = now, now.Add(o.waits.Next())
}

// Forgive has hosts asked again that are left alone since they failed: somebody has asked for it.
func (r *Registry) Forgive() { r.era.Add(1) }
