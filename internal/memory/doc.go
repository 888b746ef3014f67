// Package memory shares out the memory that work on bytes from outside may take: opening tables, importing layers, decoding
// units. How much that is, strangers decide; together it stays within one budget.
//
// Belongs here: the budget and who waits for it. Does not: what something takes, which its users know.
package memory
