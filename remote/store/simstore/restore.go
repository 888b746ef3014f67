package simstore

import "maps"

// Restore puts the store back to what a Snapshot holds, as a bucket is that was restored from a backup, or a replica that lags.
// Versions of writes that come later are new.
func (s *Store) Restore(snapshot *Store) {
	snapshot.mu.Lock()
	old := maps.Clone(snapshot.objects)
	snapshot.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects = old
}
