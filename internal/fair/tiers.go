package fair

import "strings"

// A User of what registries share is a repository: its registry's host, a slash, and its path there. A registry that asks for itself
// is its host alone.
type User string

// Host returns the user's registry.
func (u User) Host() string {
	host, _, _ := strings.Cut(string(u), "/")
	return host
}

// Tiers are Shares of two levels: hosts share what there is, and the repositories of a host what the host may have. So one of many
// repositories of a registry is to the others as one registry is to other ones. Its methods are not safe for concurrent use.
//
//	Limit 36, Most 24, Within 12: the first repository has up to 12, and then the second of its host 6, and another host's up to 12
type Tiers struct {
	Limit, Most int64   // of all hosts, and of one host alone
	Within      int64   // of Most, what one repository alone may have
	ratio       float64 // Within/Most, before they were changed
	hosts       Shares[string]
	by          map[User]int64
}

func (t *Tiers) host() *Shares[string] {
	t.hosts.Limit, t.hosts.Most = t.Limit, t.Most
	return &t.hosts
}

// Room reports whether a user may have n more. One that has nothing may have whatever is free for its host.
func (t *Tiers) Room(who User, n int64) bool {
	return t.host().Room(who.Host(), n) && (t.by[who] == 0 || t.within(who, n))
}

// Fair reports whether a user may have n more so that something is left to other hosts and to others of its own, also if it has nothing
// yet.
func (t *Tiers) Fair(who User, n int64) bool {
	return t.host().Fair(who.Host(), n) && t.within(who, n)
}

// within reports whether n more leave something to others of the user's host.
func (t *Tiers) within(who User, n int64) bool {
	// What its host may have at most, beside what others have; and what would be left of that. Both are times Limit.
	hosts, has := t.host(), t.by[who]
	of := hosts.Of(who.Host())
	most := float64(t.Most) * float64(t.Limit-(hosts.Used()-of))
	free := most - float64(of+n)*float64(t.Limit)
	return float64(has+n)*float64(t.Most-t.Within)*float64(t.Limit) <= float64(t.Within)*free
}

// Add notes that a user has n more, or less if n is negative.
func (t *Tiers) Add(who User, n int64) {
	if t.by == nil {
		t.by = map[User]int64{}
	}
	t.hosts.Add(who.Host(), n)
	if t.by[who] += n; t.by[who] == 0 {
		delete(t.by, who)
	}
}

// Of returns what a user has.
func (t *Tiers) Of(who User) int64 { return t.by[who] }

// Used returns what all users have.
func (t *Tiers) Used() int64 { return t.hosts.Used() }

// Less reports whether a user goes before another one: its host has less, or it has less of the same host.
func (t *Tiers) Less(a, b User) bool {
	if x, y := a.Host(), b.Host(); x != y {
		return t.hosts.Of(x) < t.hosts.Of(y)
	}
	return t.by[a] < t.by[b]
}

func (t *Tiers) resize(limit, most int64) {
	if t.ratio == 0 { // what Within is rounded to later says less
		t.ratio = float64(t.Within) / float64(max(t.Most, 1))
	}
	t.Limit, t.Most, t.Within = limit, most, max(int64(t.ratio*float64(most)), 1)
}

// Together reports whether two users are of one host, which take turns as one user among other hosts.
func Together(a, b User) bool { return a.Host() == b.Host() }
