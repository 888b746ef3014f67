// Package backoff waits between attempts. docs/architecture.md, "Retries", says who makes them, and how they compose.
//
// It is a few lines instead of cenkalti/backoff, whose Retry calls the attempts itself. What is retried here does more
// between two of them than wait. Volumes need waits without chance, so that a seed of the simulation repeats.
//
// Belongs here: how long to wait. Does not: what is worth another attempt, which its owner knows.
package backoff
