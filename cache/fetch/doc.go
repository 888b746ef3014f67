// Package fetch brings what an image lacks.
//
// Callers that miss together share one fetch. A reader's miss goes before prefetch, and prefetch before background work, at each
// place apart. Units are copied from images that have the same extents where that gives all of them. A reader's fetch is made
// again while its source does not answer, as long as the image's policy says.
//
// Locks are taken in this order: Fetcher.mu, then the image's; scheds.mu, then sched.mu, after all others. waits.mu and
// observers.mu are held for their lists alone. No lock is held while bytes come.
//
// Belongs here: jobs, their queues and priorities, prefetch, policies of sources that do not answer, the list of readers that wait.
// Does not: what is on disk (cache/image), decoding (cache/blob), HTTP and registries (remote).
package fetch
