package fair

import "slices"

// A Line is waiters W of users K, each user's in the order in which they came. Its methods are not safe for concurrent use.
type Line[K, W comparable] struct {
	// Together reports whether two users take turns as one; nil for no two.
	Together func(a, b K) bool

	users []K // in the order in which they came to wait, or had one of theirs served last
	by    map[K][]W
	n     int
}

// Len returns how many wait.
func (l *Line[K, W]) Len() int { return l.n }

// Push lets a user's w wait behind its others.
func (l *Line[K, W]) Push(who K, w W) {
	if l.by == nil {
		l.by = map[K][]W{}
	}
	if len(l.by[who]) == 0 {
		l.users = append(l.users, who)
	}
	l.by[who] = append(l.by[who], w)
	l.n++
}

// Remove takes out a w that leaves. It reports whether it was there.
func (l *Line[K, W]) Remove(who K, w W) bool {
	i := slices.Index(l.by[who], w)
	if i < 0 {
		return false
	}
	l.drop(who, i)
	return true
}

// First returns whose turn it is and its first waiter: of the users that may go, the first by less, and of several such the one that
// waits longest.
func (l *Line[K, W]) First(less func(a, b K) bool, may func(K, W) bool) (who K, w W, ok bool) {
	for _, k := range l.users {
		if (!ok || less(k, who)) && may(k, l.by[k][0]) {
			who, w, ok = k, l.by[k][0], true
		}
	}
	return who, w, ok
}

// Served takes out the first of a user's waiters. The user goes behind the others, with those that it takes turns with before it.
func (l *Line[K, W]) Served(who K) {
	waits := l.drop(who, 0)
	if l.Together != nil {
		var others, ours []K
		for _, k := range l.users {
			if l.Together(k, who) {
				ours = append(ours, k)
			} else {
				others = append(others, k)
			}
		}
		l.users = append(others, ours...)
	}
	if waits {
		i := slices.Index(l.users, who)
		l.users = append(slices.Delete(l.users, i, i+1), who)
	}
}

// drop reports whether the user still waits.
func (l *Line[K, W]) drop(who K, i int) (more bool) {
	l.n--
	if len(l.by[who]) > 1 {
		l.by[who] = slices.Delete(l.by[who], i, i+1)
		return true
	}
	delete(l.by, who)
	at := slices.Index(l.users, who)
	l.users = slices.Delete(l.users, at, at+1)
	return false
}
