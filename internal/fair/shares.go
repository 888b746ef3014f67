package fair

// Shares counts what each user has of something that has an end. One user alone has at most Most. With others, a user may have
// more as long as it has at most Most/(Limit-Most) times what is free afterwards: so several that never give anything back leave
// some, too. Its methods are not safe for concurrent use.
//
//	Limit 24, Most 18: the first has up to 18, then the second 4, and the next ones 1 each
type Shares[K comparable] struct {
	Limit, Most int64
	used        int64
	by          map[K]int64
}

// Room reports whether a user may have n more. One that has nothing may have whatever is free.
func (s *Shares[K]) Room(who K, n int64) bool {
	return s.by[who] == 0 && s.used+n <= s.Limit || s.Fair(who, n)
}

// Fair reports whether a user may have n more so that something is left to others, also if it has nothing yet.
func (s *Shares[K]) Fair(who K, n int64) bool {
	has, free := s.by[who], s.Limit-s.used-n
	return free >= 0 && float64(has+n)*float64(s.Limit-s.Most) <= float64(s.Most)*float64(free) // bytes of a large machine, times each other
}

// Add notes that a user has n more, or less if n is negative.
func (s *Shares[K]) Add(who K, n int64) {
	if s.by == nil {
		s.by = map[K]int64{}
	}
	s.used += n
	if s.by[who] += n; s.by[who] == 0 {
		delete(s.by, who)
	}
}

// Of returns what a user has.
func (s *Shares[K]) Of(who K) int64 { return s.by[who] }

// Used returns what all users have.
func (s *Shares[K]) Used() int64 { return s.used }

// Less reports whether one user has less than another.
func (s *Shares[K]) Less(a, b K) bool { return s.by[a] < s.by[b] }

func (s *Shares[K]) resize(limit, most int64) { s.Limit, s.Most = limit, most }
