package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/remote/registry"
)

// A loginOptions says who the user is to a registry, and where the password is. It has no field for a password on the command
// line: every user of the machine sees command lines.
type loginOptions struct {
	plainHTTP     bool
	user          string
	passwordStdin bool
	passwordFile  string

	secret string // the password, once the command runs
}

// flags adds the flags to a command, and reads the password before it runs: once, as stdin cannot be read again, while some
// commands log in twice. registries says what the flags are for, keeps what becomes of the name and the password.
func (o *loginOptions) flags(c *cobra.Command, registries, keeps string) {
	f := c.Flags()
	f.BoolVar(&o.plainHTTP, "plain-http", false, "reach "+registries+" by plain HTTP")
	f.StringVar(&o.user, "user", "", "`name` to log in to "+registries+" with; the password comes from --password-stdin, --password-file or "+
		"$SNAPCTL_PASSWORD, not from the command line, which every user of this machine sees in ps"+keeps)
	f.BoolVar(&o.passwordStdin, "password-stdin", false, "read the password for --user from stdin")
	f.StringVar(&o.passwordFile, "password-file", "", "read the password for --user from this `file`")
	c.PreRunE = func(cmd *cobra.Command, _ []string) error { return o.read(cmd.InOrStdin()) }
}

// maxPassword is more than any password or token has.
const maxPassword = 64 << 10

// read checks the flags and reads the password.
func (o *loginOptions) read(stdin io.Reader) (err error) {
	name, _, inArgs := strings.Cut(o.user, ":")
	switch {
	case inArgs:
		return cli.Usagef("--user takes a name without a password: every user of this machine sees command lines (ps), so change this "+
			"password, and write --user %s with --password-stdin, --password-file FILE or $SNAPCTL_PASSWORD", name)
	case o.passwordStdin && o.passwordFile != "":
		return cli.Usagef("--password-stdin and --password-file: choose one")
	case o.user == "" && (o.passwordStdin || o.passwordFile != ""):
		return cli.Usagef("--password-stdin and --password-file belong to --user NAME")
	case o.user != "":
		o.secret, err = o.password(stdin)
	}
	return err
}

func (o *loginOptions) login() registry.Login {
	return registry.Login{User: o.user, Secret: o.secret, PlainHTTP: o.plainHTTP}
}

// password reads the password from where it is.
func (o *loginOptions) password(stdin io.Reader) (string, error) {
	from, where := stdin, "stdin"
	switch {
	case o.passwordFile != "":
		f, err := os.Open(o.passwordFile)
		if err != nil {
			return "", fmt.Errorf("--password-file: %w", err)
		}
		defer f.Close()
		from, where = f, o.passwordFile
	case !o.passwordStdin:
		secret := os.Getenv("SNAPCTL_PASSWORD")
		if secret == "" {
			return "", cli.Usagef("--user %s without a password: use --password-stdin or --password-file FILE, or set SNAPCTL_PASSWORD", o.user)
		}
		return secret, nil
	}
	p, err := io.ReadAll(io.LimitReader(from, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("password from %s: %w", where, err)
	}
	// Files and pipes end with a newline that echo and editors write.
	p = bytes.TrimSuffix(bytes.TrimSuffix(p, []byte("\n")), []byte("\r"))
	if len(p) == 0 || len(p) > maxPassword {
		return "", cli.Usagef("password from %s: want 1 to %d bytes", where, maxPassword)
	}
	return string(p), nil
}
