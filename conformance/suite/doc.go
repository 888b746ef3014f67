// Package suite holds the tests that every implementation of a contract passes: Device for
// blockdev.Device and its abilities, Store for store.Store.
//
// It is meant for other projects, too: call suite.Device or suite.Store from a test of your own with a
// function that opens a new, empty instance. A failing case names the promise that is broken. Nothing is left out for what an
// instance turns out to be: suite.Device is told which abilities there are, and runs the cases of each.
//
// Harms are what may become of a small file, for tests of who reads one.
//
// Belongs here: one suite a contract, and the devices and the damage that tests start from.
// Does not: end-to-end tests, and anything that starts a program.
package suite
