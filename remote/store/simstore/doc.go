// Package simstore is a store.Store in memory whose network fails, for tests.
//
// Each request may be lost before it reaches the store, be carried out but not answered, or be carried out twice. It may
// arrive long after its caller was told that it failed. The store itself is right: it carries out each request whole, in
// one step. Time is the time package's, so that a test under testing/synctest spends none.
//
// Belongs here: faults of requests. Does not: faults of what asks.
package simstore
