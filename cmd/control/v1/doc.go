// Package controlv1 is the control API of remorad: messages, clients and servers of gRPC, made of the .proto files beside it.
// Other programs compile against this package or, in other languages, against the files. node.proto has the conventions:
// units, errors, how streams end.
//
//	conn, err := grpc.NewClient("unix:///run/remora/remora.sock",
//		grpc.WithTransportCredentials(insecure.NewCredentials()),
//		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(controlv1.MaxAnswer)))
//	…
//	volumes, err := controlv1.NewVolumesClient(conn).ListAttachedVolumes(ctx, &controlv1.ListAttachedVolumesRequest{})
//
// `make generate` makes the Go files anew, and a test fails while they differ from what the .proto files say.
//
// Belongs here: the API's messages and services, and its bounds.
// Does not: what a call does (cmd/remorad), what people are shown of it (cmd/internal/control).
package controlv1

//go:generate go run ../../../conformance/tools/protogen .

// MaxAnswer is how many bytes an answer may have: a status of thousands of layers. gRPC's clients take 4 MiB by default.
const MaxAnswer = 64 << 20

// MaxRequest is how many bytes a request may have. The largest ones carry a profile.
const MaxRequest = 4 << 20
