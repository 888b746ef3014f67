// Package fair shares out what a node has little of among those that ask for it: registries, repositories, images. One that
// never gives back what it has leaves room for the others, and those that have least go first.
//
// Belongs here: who may have how much, and who is next. Does not: what is shared, which its users know.
package fair
