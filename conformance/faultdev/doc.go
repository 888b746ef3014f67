// Package faultdev is devices that go wrong on command: requests that fail (Faulty) or wait (Hold), and what a
// power cut would have left of a device (Recorder).
//
// Belongs here: faults of blockdev.Devices, for tests and benchmarks of whatever uses one. Does not: suites of contracts
// (suite), faults of stores and registries.
package faultdev
