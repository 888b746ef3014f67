// Package autofs has whoever enters a directory wait until something is mounted there.
//
// containerd is told where a layer will be before it is there, and does not ask again. If it mounts an overlay on a directory
// that is still empty, its container has an empty tree, and nobody notices. autofs's direct mounts (Linux's autofs protocol
// version 5, Documentation/filesystems/autofs.rst) hold up everyone who enters the directory and tell us. We mount the layer
// there and let them go on, into it, or let them fail.
//
// What keeps it right, each line found by trying:
//
//   - The kernel does not wait where a path ends in the directory's name, unless something follows: "lower/" waits, and an
//     overlay on "lower" fails, since autofs itself is no layer.
//   - Processes of this process's group never wait, which includes their mounting something there. All others do until the
//     question is answered. So no client may be in this group.
//   - When nobody reads the pipe any more, those who enter fail. Those who waited before go on waiting until somebody enters,
//     or Quiet is called.
//
// Belongs here: autofs mounts and the kernel's questions. Does not: what is mounted.
package autofs
