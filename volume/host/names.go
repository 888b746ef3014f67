package host

import (
	"encoding/json"
	"errors"
	"slices"

	"github.com/remora-storage/remora/volume"
)

// places are the URLs of stores, no two of which are known to lead to one store. In JSON one place is a string, as it always was.
type places []string

// MarshalJSON implements json.Marshaler.
func (p places) MarshalJSON() ([]byte, error) {
	if len(p) == 1 {
		return json.Marshal(p[0])
	}
	return json.Marshal([]string(p))
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *places) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*p = places{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(p))
}

// Remember notes that a store has a volume of a name.
func (h *Host) Remember(name, url string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.at[url]; s != nil {
		url = s.url
	}
	if !h.record.remember(name, url) {
		return nil
	}
	return h.saveLocked()
}

// remember reports whether it is news that a store has a volume of a name.
func (r *record) remember(name, url string) bool {
	known := r.Names[name]
	if slices.ContainsFunc(known, func(u string) bool { return r.same(u, url) }) {
		return false
	}
	r.Names[name] = append(known, url)
	return true
}

// Forget undoes Remember.
func (h *Host) Forget(name, url string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.record.Names[name]
	left := slices.DeleteFunc(slices.Clone(known), func(u string) bool { return h.record.same(u, url) })
	if len(left) == len(known) {
		return nil
	}
	if h.record.Names[name] = left; len(left) == 0 {
		delete(h.record.Names, name)
	}
	return h.saveLocked()
}

// Removed forgets a volume that is no more, and whatever journals this node has of it.
func (h *Host) Removed(name, url string, id volume.ID) error {
	h.mu.Lock()
	delete(h.record.Seen, id)
	h.mu.Unlock()
	return errors.Join(h.Forget(name, url), h.journals.RemoveAll(id))
}

// StoresOf returns the stores in which this node knows a volume of a name, each by one of its URLs.
func (h *Host) StoresOf(name string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record.distinct(slices.Clone(h.record.Names[name]))
}

// Stores returns the stores that this node has used, each by one of its URLs.
func (h *Host) Stores() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var urls []string
	for _, known := range h.record.Names {
		urls = append(urls, known...)
	}
	slices.Sort(urls)
	return h.record.distinct(slices.Compact(urls))
}

// distinct leaves out the URLs that lead to a store which one before leads to.
func (r *record) distinct(urls []string) (all []string) {
	for _, url := range urls {
		if !slices.ContainsFunc(all, func(u string) bool { return r.same(u, url) }) {
			all = append(all, url)
		}
	}
	return all
}

// same reports whether two URLs are known to lead to one store.
func (r *record) same(a, b string) bool {
	ida, aok := r.Stores[a]
	idb, bok := r.Stores[b]
	return a == b || aok && bok && ida == idb
}
