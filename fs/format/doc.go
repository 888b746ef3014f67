// Package format says what a format of layers is: a kind of index by which a layer is read by parts.
//
// A format is a package below this one that implements Format. It looks at a layer's descriptor, and opens the layers that it
// claims. Programs list the formats that they read (cmd/internal/formats). Nothing else knows one by its name.
//
// Belongs here: the contract. Does not: formats (the packages below), which layers are read lazily and whom to trust
// (snapshotter/layers), writing (fs/convert).
package format
