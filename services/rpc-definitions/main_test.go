package main

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// made runs the program on a folder and returns its output.
func made(t *testing.T, folder string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(append([]string{"-folder", folder}, args...), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func content(t *testing.T, folder, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func definitionsIn(t *testing.T, folder string) definitions {
	t.Helper()
	var d definitions
	if err := json.Unmarshal([]byte(content(t, folder, "broker/definitions.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// passwordIn returns the password of a user's first URL.
func passwordIn(t *testing.T, folder, user string) string {
	t.Helper()
	first, _, _ := strings.Cut(content(t, folder, user+"/amqp-url"), ",")
	u, err := url.Parse(strings.TrimSpace(first))
	if err != nil || u.User.Username() != user {
		t.Fatalf("the URL of %s: %v", user, err)
	}
	password, _ := u.User.Password()
	return password
}

// Each user has a password of its own, the definitions have only its hash, and the output nothing.
func TestUsersHavePasswordsOfTheirOwn(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	out := made(t, folder, "-clients", "shop,billing")
	d := definitionsIn(t, folder)
	seen := map[string]string{}
	for _, u := range d.Users {
		if u.Name == "guest" {
			if u.PasswordHash != "" || u.Tags != "" {
				t.Errorf("guest: %+v", u)
			}
			continue
		}
		password := passwordIn(t, folder, u.Name)
		if other, taken := seen[password]; taken || len(password) < 26 {
			t.Errorf("the password of %s has %d letters; same as of %q", u.Name, len(password), other)
		}
		seen[password] = u.Name
		if !isHashOf(u.PasswordHash, password) || isHashOf(u.PasswordHash, password+"x") {
			t.Errorf("the hash of %s is not of its password", u.Name)
		}
		for _, text := range []string{out, content(t, folder, "broker/definitions.json")} {
			if strings.Contains(text, password) {
				t.Errorf("the password of %s is told", u.Name)
			}
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d users, want server, operator and two clients", len(seen))
	}
	if got := content(t, folder, "server/authorization.json"); got != `{"methods":{"*":["shop","billing"]}}`+"\n" {
		t.Errorf("authorization %s", got)
	}
}

// TestHash: hashes in the format of RabbitMQ, the first from its documentation.
func TestHash(t *testing.T) {
	t.Parallel()
	for hash, want := range map[string]bool{
		"kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR": true,
		"kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POS": false,
		"kI3GCg==": false, "": false, "?": false,
	} {
		if got := isHashOf(hash, "test12"); got != want {
			t.Errorf("%q: %v, want %v", hash, got, want)
		}
	}
}

// Passwords stay while settings change; a missing or damaged file gets a new one, and -rotate
// replaces all.
func TestPasswordsStay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change  func(folder string) error
		args    []string
		changes bool
		fresh   []string // users with another password
	}{
		"nothing changes": {changes: false},
		"another queue":   {args: []string{"-queue", "orders"}, changes: true},
		"another broker":  {args: []string{"-broker", "amqps://a:5671,amqps://b:5671"}, changes: true},
		"another client":  {args: []string{"-clients", "client,more"}, changes: true},
		"no URL of the client": {
			change: func(folder string) error { return os.Remove(filepath.Join(folder, "client/amqp-url")) },
			fresh:  []string{"client"}, changes: true,
		},
		"half a URL": {
			change: func(folder string) error {
				return os.WriteFile(filepath.Join(folder, "server/amqp-url"), []byte("amqp://serv"), 0o600)
			},
			fresh: []string{"server"}, changes: true,
		},
		"half of the definitions": {
			change: func(folder string) error {
				return os.WriteFile(filepath.Join(folder, "broker/definitions.json"), []byte("{"), 0o600)
			},
			changes: true,
		},
		"rotate": {args: []string{"-rotate"}, fresh: []string{"server", "operator", "client"}, changes: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			made(t, folder)
			before := map[string]string{}
			for _, user := range []string{"server", "operator", "client"} {
				before[user] = passwordIn(t, folder, user)
			}
			if c.change != nil {
				if err := c.change(folder); err != nil {
					t.Fatal(err)
				}
			}
			if got := made(t, folder, c.args...); strings.Contains(got, "were written") != c.changes {
				t.Errorf("said %q", got)
			}
			for _, u := range definitionsIn(t, folder).Users {
				old, known := before[u.Name]
				if !known {
					continue
				}
				password := passwordIn(t, folder, u.Name)
				if !isHashOf(u.PasswordHash, password) {
					t.Errorf("the hash of %s is not of its password", u.Name)
				}
				if fresh := slices.Contains(c.fresh, u.Name); (password != old) != fresh {
					t.Errorf("%s: another password %v, want %v", u.Name, password != old, fresh)
				}
			}
			if got := made(t, folder, c.args...); c.args == nil && strings.Contains(got, "were written") {
				t.Errorf("the run after it said %q", got)
			}
		})
	}
}

// TestPatternsQuoteTheQueue: a dot in the queue's name is no wildcard, and a client's patterns
// leave out the queues of another client whose name begins alike.
func TestPatternsQuoteTheQueue(t *testing.T) {
	t.Parallel()
	s := settings{queue: "a.b", vhost: "/", clients: []string{"client"}, processes: 1}
	p := s.permission("client")
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{p.Configure, "a.b.reply.client.1", true},
		{p.Configure, "axb.reply.client.1", false},
		{p.Configure, "a.b.reply.client2.1", false},
		{p.Configure, "a.b.reply.client.", false},
		{p.Write, "a.b.rpc", true},
		{p.Write, "amq.default", false},
		{s.permission("server").Configure, "a.b.7.batch", true},
		{s.permission("server").Configure, "a.b.reply.client.1", false},
		{s.permission("server").Configure, "a.b.control.1f", true},
		{s.permission("operator").Read, "a.b.dead", true},
		{s.permission("operator").Read, "a.b", false},
	} {
		if got := regexp.MustCompile(c.pattern).MatchString(c.name); got != c.want {
			t.Errorf("%s matches %s: %v", c.pattern, c.name, got)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, args := range [][]string{
		{},
		{"-folder", folder, "more"},
		{"-folder", folder, "-unknown"},
		{"-folder", folder, "-queue", ""},
		{"-folder", folder, "-vhost", ""},
		{"-folder", folder, "-processes", "0"},
		{"-folder", folder, "-clients", ""},
		{"-folder", folder, "-clients", "a,a"},
		{"-folder", folder, "-clients", "server"},
		{"-folder", folder, "-clients", "broker"},
		{"-folder", folder, "-clients", "../a"},
		{"-folder", folder, "-call-all", "a"},
		{"-folder", folder, "-call-all", "client,"},
		{"-folder", folder, "-broker", "http://a"},
		{"-folder", folder, "-broker", "amqp://user:secret@a"},
		{"-folder", folder, "-broker", "amqp://a/vhost"},
		{"-folder", folder, "-broker", ""},
	} {
		err := run(args, new(bytes.Buffer))
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", args, err)
		}
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("wrong arguments wrote %v, %v", left, err)
	}
	if err := run([]string{"-folder", "/proc/nonexistent"}, new(bytes.Buffer)); err == nil {
		t.Error("no error for a folder that cannot be made")
	}
	made(t, folder, "-vhost", "a/b", "-broker", "amqp://a:1,amqp://b:2")
	if got := content(t, folder, "client/amqp-url"); !strings.Contains(got, "@a:1/a%2Fb,amqp://client:") || !strings.HasSuffix(got, "@b:2/a%2Fb\n") {
		t.Errorf("the URLs of a virtual host: %d bytes", len(got))
	}
}

// TestDocumentedPermissions: the patterns of docs/security.md are those of the definitions, without and
// with what is allowed only on demand.
func TestDocumentedPermissions(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for place, args := range [][]string{nil, {"-streams", "-call-all", "client"}} {
		folder := t.TempDir()
		made(t, folder, args...)
		for _, p := range definitionsIn(t, folder).Permissions {
			if p.User == guestUser {
				continue
			}
			all := regexp.MustCompile("set_permissions "+p.User+strings.Repeat(`[\s\\]+'([^']+)'`, 3)+"\n").FindAllStringSubmatch(string(doc), -1)
			if want := []string{p.Configure, p.Write, p.Read}; len(all) == 0 || !slices.Equal(all[min(place, len(all)-1)][1:], want) {
				t.Errorf("docs/security.md has other permissions of %s than %q", p.User, want)
			}
		}
	}
}

// TestLimits: what is allowed on demand has room.
func TestLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args             []string
		queues, channels int // of the virtual host; of the server
	}{
		"usual":          {nil, 64 + 2*10*4, 2 * 10 * 10},
		"streams":        {[]string{"-streams"}, 64 + 2*10*8, 2 * 10 * 11},
		"call all":       {[]string{"-call-all", "a"}, 64 + 2*10*6, 2 * 10 * 10},
		"streams, calls": {[]string{"-streams", "-call-all", "a,b"}, 64 + 2*10*11, 2 * 10 * 11},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			made(t, folder, append(c.args, "-clients", "a,b", "-processes", "10")...)
			d := definitionsIn(t, folder)
			limits, _ := d.Parameters[0].Value.(map[string]any)
			if got := limits["max-queues"]; got != float64(c.queues) {
				t.Errorf("%v queues, want %d", got, c.queues)
			}
			if got := d.Users[0].Limits["max-channels"]; got != c.channels {
				t.Errorf("%d channels of %s, want %d", got, d.Users[0].Name, c.channels)
			}
		})
	}
}
