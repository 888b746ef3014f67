// Command protogen makes the Go code of the .proto files in a directory of this module, beside them or in another
// directory. It needs neither protoc nor buf: it reads the files itself, and runs the plugins that go.mod pins as tools.
//
//	go run ./conformance/tools/protogen [-o OUT] DIR
package main
