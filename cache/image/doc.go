// Package image keeps images on local disk: sparse files whose extents come and go.
//
// An Image may be killed at any moment. An extent is recorded only after its bytes are verified and synced, so what is recorded
// is right and is never fetched or verified again. An extent is recorded as gone before it is punched out. Where a sync fails,
// nothing that it may have lost is believed.
//
// Locks are taken in this order: the budget's eviction, ledger.mu, Image.punch, Image.mu. Those of Proof, Residue and likenesses
// come after these, each alone, and Dir.mu is held for its lists alone. The budget's count is the last. Room is reserved while
// none of these is held, because that may evict.
//
// Belongs here: the extent table, the presence record, what is pinned, what readers used, residue, imports, eviction.
// Does not: where bytes come from (cache/fetch), whether the whole is what was promised (cache/proof), objects (cache/objects).
package image
