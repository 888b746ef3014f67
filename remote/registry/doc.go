// Package registry reads blobs from registries by byte range.
//
// It reaches registries as containerd does: by hosts.toml (mirrors, plain HTTP, certificates,
// headers), with credentials from Docker's configuration. It retries what can help, renews
// tokens, remembers redirects, and hands on no byte that the server did not declare to be of the
// range asked for. It does not know whether the bytes are right: the cache verifies them.
//
// It also reads manifests and what is published beside images, opens repositories for pushing, and
// measures the way to each registry.
//
// Belongs here: hosts, credentials, retries, ranges. Does not: what the bytes mean, objects that volumes
// keep (remote/store).
package registry
