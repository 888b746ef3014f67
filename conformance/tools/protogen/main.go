package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	out := flag.String("o", "", "directory for the Go files, instead of DIR")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "protogen: want one DIR")
		os.Exit(2)
	}
	dir := flag.Arg(0)
	if *out == "" {
		*out = dir
	}
	if err := generate(ctx, dir, *out); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}
