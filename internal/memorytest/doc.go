// Package memorytest helps tests of what takes memory of a budget.
//
// Belongs here: spending a budget, for tests of any package. Does not: what only one package's tests need.
package memorytest
