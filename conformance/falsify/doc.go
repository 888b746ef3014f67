// Package falsify changes the tables of contents of layers, so that they lie about data that are right, and makes ones that ask for much.
//
// Belongs here: what tests of several rooms falsify of a layer's bytes. Does not: who serves them, and to whom.
package falsify
