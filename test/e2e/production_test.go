//go:build e2e

package e2e

import (
	"archive/tar"
	"context"
	"io"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// TestProductionOverlayRuns starts the overlay compose/production.yml as docs/security.md says: the
// client makes its calls, guest is off, and no password is in the settings or the log of a container.
func TestProductionOverlayRuns(t *testing.T) {
	s := newStack(t)
	if !s.containers {
		t.Log("no Docker engine answers: there is no Compose")
		return
	}
	s.useComposeV2()
	s.env = append(s.env, "COMPOSE_FILE=docker-compose.yml:compose/production.yml")
	s.buildImages()
	if out, err := s.composeV2("up", "-d", "--no-build", "--wait", "rabbitmq", "rpc-server"); err != nil {
		t.Fatalf("up -d --wait: %v\n%s", err, out)
	}
	out, err := s.composeV2("run", "--no-deps", "-T", "rpc-client")
	if err != nil || !strings.Contains(out, `"calls":1000,"ok":1000,`) || !strings.Contains(out, "every call was answered as expected") {
		t.Fatalf("run rpc-client: %v\n%s", err, out)
	}

	ids, err := s.composeV2("ps", "-a", "-q")
	containers := strings.Fields(ids)
	if err != nil || len(containers) < 4 {
		t.Fatalf("containers %q (%v)", ids, err)
	}
	maker, err := s.composeV2("ps", "-a", "-q", "definitions")
	if err != nil {
		t.Fatal(err)
	}
	told := out
	for _, id := range containers {
		told += s.must("docker", "inspect", id) + s.must("docker", "logs", id)
	}
	for _, user := range []string{"server", "client", "operator"} {
		password := s.passwordOf(strings.TrimSpace(maker), user)
		if strings.Contains(told, password) {
			t.Errorf("the password of %s is in the settings or the log of a container", user)
		}
	}

	if conn, err := amqp.Dial("amqp://guest:guest@" + s.amqp); err == nil {
		_ = conn.Close()
		t.Error("guest may log in")
	}
	if out, err := s.composeV2("run", "--rm", "-T", "definitions"); err != nil || !strings.Contains(out, "the users are as they should be") {
		t.Errorf("the second start made other users: %v\n%s", err, out)
	}
}

// passwordOf copies the URL of a user out of the container that made it, and returns its password.
func (s *stack) passwordOf(container, user string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "cp", container+":/secrets/"+user+"/amqp-url", "-")
	archive, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	files := tar.NewReader(archive)
	if _, err := files.Next(); err != nil {
		s.t.Fatalf("the URL of %s: %v", user, err)
	}
	text, err := io.ReadAll(files)
	if err != nil {
		s.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, archive)
	if err := cmd.Wait(); err != nil {
		s.t.Fatal(err)
	}
	u, err := url.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		s.t.Fatalf("the URL of %s cannot be parsed", user)
	}
	password, _ := u.User.Password()
	if u.User.Username() != user || password == "" {
		s.t.Fatalf("the URL of %s names %s", user, u.User.Username())
	}
	return password
}
