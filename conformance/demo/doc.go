// Command demo shows Remora's main job on real input. It pushes an image of several layers of Debian packages to a
// registry, and containerd pulls and runs it. It does so as it is, for the first time and the second, converted, and in
// the ordinary way. Then the demo writes the image's files to a disk in a store, while it kills remorad.
//
// Belongs here: what a newcomer should see. Does not: measurements (conformance/bench), tests.
package main
