package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// A UsageError is a mistake in how a command was called. It makes the exit code 2.
type UsageError struct{ error }

// Usage makes a UsageError of an error.
func Usage(err error) error { return UsageError{err} }

// Usagef is fmt.Errorf for a UsageError.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// A Program is what main runs: its arguments come without the program's name.
type Program func(ctx context.Context, args []string, stdout, stderr io.Writer) error

// Main runs a program until it ends or is told to by a signal, and exits with what Code says. What the program was started with
// beside its three streams goes to none of its children, which may outlive it: somebody may wait for the end of a pipe.
func Main(name string, run Program) {
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // an older kernel leaves them open
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	}
	os.Exit(Code(err))
}

// Code returns a program's exit code: 0, or 1 if it failed, or 2 if it was called wrongly.
func Code(err error) int {
	var usage UsageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	}
	return 1
}
