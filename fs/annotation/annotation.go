package annotation

// TOCDigest ties a table of contents to the manifest: the digest of the plain table. eStargz has it, and the first generation of
// zstd:chunked.
const TOCDigest = "containerd.io/snapshot/stargz/toc.digest"

// TOCOffset is one that our converter adds to eStargz: where the table starts, in
// decimal. It is only a hint that saves bytes; the footer decides.
const TOCOffset = "io.remora.stargz.toc-offset"

// StartSize is how many bytes from the beginning of the blob hold what the
// image's program reads when it starts, in decimal. Who reads it may fetch them before the index.
const StartSize = "io.remora.start-size"

// Landmarks is one of zstd:chunked: the layer has eStargz's landmarks, small files
// that say what comes first, and that are not shown.
const Landmarks = "io.remora.landmarks"
