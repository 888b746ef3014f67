package main

import (
	"strings"
	"testing"
)

// TestPasswordIsNoArgument: no command takes a password from its command line, and what it says names it nowhere and tells where
// passwords belong.
func TestPasswordIsNoArgument(t *testing.T) {
	u := newUser(t)
	const image = "r.example.com/app:1"
	for _, args := range [][]string{
		{"pull", image}, {"convert", image, image}, {"record", image}, {"trace", image}, {"profile", "show", image},
		{"profile", "push", image}, {"profile", "pull", image}, {"profile", "rm", image}, {"index", "create", image},
		{"index", "push", image}, {"index", "show", image}, {"index", "rm", image}, {"dev", "serve", "memory:1MiB"},
	} {
		r := u.run(append(args, "--user", "robot:hunter2")...)
		r.fails(2, "every user of this machine", "--user robot ", "--password-stdin", "--password-file", "$SNAPCTL_PASSWORD")
		if strings.Contains(r.err.Error()+r.stdout+r.stderr, "hunter2") {
			t.Errorf("snapctl %q says the password: %v", args, r.err)
		}
	}
}

// TestPasswordPlaces: of flags that contradict each other, and of places without a password, the user is told.
func TestPasswordPlaces(t *testing.T) {
	u := newUser(t)
	const image = "r.example.com/app:1"
	empty := u.file("empty", "\n")
	for want, args := range map[string][]string{
		"--password-stdin and --password-file: choose one": {"--user", "robot", "--password-stdin", "--password-file", empty},
		"belong to --user NAME":                            {"--password-stdin"},
		"password from stdin: want 1 to":                   {"--user", "robot", "--password-stdin"},
		"password from " + empty + ": want 1 to":           {"--user", "robot", "--password-file", empty},
		"or set SNAPCTL_PASSWORD":                          {"--user", "robot"},
	} {
		u.run(append([]string{"pull", image}, args...)...).fails(2, want)
	}
	u.run("pull", image, "--user", "robot", "--password-file", u.path("none")).fails(1, "--password-file", "none")
	for text, want := range map[string]string{"a": "a", "a\n": "a", "a\r\n": "a", " a b\n\n": " a b\n"} {
		o := loginOptions{user: "robot", passwordStdin: true}
		if err := o.read(strings.NewReader(text)); err != nil || o.login().Secret != want {
			t.Errorf("%q: got %q, %v, want %q", text, o.login().Secret, err, want)
		}
	}
	t.Setenv("SNAPCTL_PASSWORD", "of the environment")
	o := loginOptions{user: "robot"}
	if err := o.read(nil); err != nil || o.login().Secret != "of the environment" {
		t.Errorf("from the environment: %q, %v", o.login().Secret, err)
	}
}
