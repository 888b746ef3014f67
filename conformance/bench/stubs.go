package main

import "context"

func complete(ctx context.Context, o options) error { return nil }
func memory(ctx context.Context, o options) error   { return nil }
