package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/internal/config"
)

// ruleFile is a file of authorization rules that a test rewrites.
type ruleFile struct {
	t    *testing.T
	path string
}

func newRuleFile(t *testing.T, text string) *ruleFile {
	t.Helper()
	f := &ruleFile{t, filepath.Join(t.TempDir(), "rules.json")}
	f.write(text)
	return f
}

func (f *ruleFile) write(text string) {
	f.t.Helper()
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// settingsWith returns settings with a file of rules.
func settingsWith(path string) *Config {
	c := &Config{AuthorizationFile: path}
	c.AMQP.URL = config.Secret("amqp://servers:secret@h/,amqp://servers:secret@i/")
	return c
}

func TestAuthorizationRulesAreReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newRuleFile(t, `{"methods": {"a": ["alice"]}}`)
		core, logged := observer.New(zap.InfoLevel)
		a, err := newAuthorization(settingsWith(f.path), zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		wait := a.watch(ctx)
		want := func(what string, alice, bob bool, lines ...string) {
			t.Helper()
			<-time.After(authorizationPause)
			synctest.Wait()
			if got := a.inForce.Load(); got.Allow("a", "alice") != alice || got.Allow("a", "bob") != bob {
				t.Errorf("%s: alice %t, bob %t", what, got.Allow("a", "alice"), got.Allow("a", "bob"))
			}
			var got []string
			for _, entry := range logged.TakeAll() {
				text, _ := entry.ContextMap()["error"].(string)
				got = append(got, strings.TrimSpace(entry.Message+" "+text))
			}
			if strings.Join(got, "\n") != strings.Join(lines, "\n") {
				t.Errorf("%s: logged %q, want %q", what, got, lines)
			}
		}
		const changed, kept = "authorization rules changed", "the authorization rules could not be read again, so they stay as they were "
		want("at first", true, false)
		f.write(`{"methods": {"a": ["bob"]}}`)
		want("changed", false, true, changed)
		f.write(`{"methods": {"a": ["alice"]}`)
		want("broken", false, true, kept+"unexpected EOF")
		want("still broken", false, true)
		f.write(`{"methods": {"a": ["servers"]}}`)
		want("the server's own user", false, true, kept+`lists "servers", the user of this server: give callers other users, because this user can name any caller`)
		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		want("missing", false, true, kept+"no such file or directory")
		f.write(`{"methods": {"a": ["bob"]}}`)
		want("as before", false, true)
		f.write(`{"methods": {}}`)
		want("nobody", false, false, changed)
		stop()
		wait()
	})
}

func TestInvalidAuthorizationFile(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                  "EOF",
		`{"methods": {"a*b": []}}`:          `want "*" only at the end`,
		`{"methods": {"a": ["servers"]}}`:   `lists "servers"`,
		`{"methods": {"a": [], "a": null}}`: "occurs twice",
	} {
		if _, err := newAuthorization(settingsWith(newRuleFile(t, text).path), zap.NewNop()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	if _, err := newAuthorization(settingsWith(t.TempDir()), zap.NewNop()); err == nil || !strings.Contains(err.Error(), "is not an ordinary file") {
		t.Errorf("a folder: %v", err)
	}
}

func TestWithoutAuthorizationFile(t *testing.T) {
	t.Parallel()
	a, err := newAuthorization(settingsWith(""), zap.NewNop())
	if a != nil || err != nil || len(a.option()) != 0 {
		t.Errorf("got %v, %v", a, err)
	}
	a.watch(t.Context())()
}
