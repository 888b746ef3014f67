// Package store says what volumes need of an object store: a Store, with conditional puts.
//
// It has the contract and its errors, the abilities that only some stores have, and Probe, which tests whether a
// server keeps the contract. The stores themselves are packages below: filestore (a directory), s3store (a bucket),
// simstore (memory, with faults, for tests).
//
// Belongs here: the contract, and what works on every Store. Does not: what the objects are (volume), registries
// (remote/registry).
package store
