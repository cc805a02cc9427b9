//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// redrive runs the shovel of the run book in docs/operations.md until it ends. With user "" the
// messages get no user, as by "Move messages" of the management UI.
func (p *production) redrive(user string) {
	p.t.Helper()
	book, err := os.ReadFile(filepath.Join(rig.Root(p.t), "docs", "operations.md"))
	if err != nil {
		p.t.Fatal(err)
	}
	found := regexp.MustCompile(`(?s)set_parameter shovel redrive \\\s+'(\{.*?\})'\n`).FindSubmatch(book)
	var parameter map[string]any
	if found == nil || json.Unmarshal(found[1], &parameter) != nil {
		p.t.Fatal("the run book has no shovel")
	}
	const properties = "dest-publish-properties"
	if set, _ := parameter[properties].(map[string]any); set["user_id"] != "guest" {
		p.t.Fatalf("the shovel of the run book sets %v, want the servers' user", set)
	}
	parameter[properties] = map[string]string{"user_id": user}
	if user == "" {
		delete(parameter, properties)
	}
	parameter["src-uri"], parameter["dest-uri"] = "amqp:///"+p.vhost, "amqp:///"+p.vhost
	text, err := json.Marshal(parameter)
	if err != nil {
		p.t.Fatal(err)
	}
	p.broker.Ctl("-q", "set_parameter", "-p", p.vhost, "shovel", "redrive", string(text))
	rig.Eventually(p.t, "the shovel has moved its messages", func() bool {
		return !strings.Contains(p.broker.Ctl("-q", "list_parameters", "-p", p.vhost), "redrive")
	})
}

// TestProductionDeadLetterMovedBack: a dead letter that the shovel of the run book moves back runs as
// its caller's request. Without the servers' user it has no caller: a server with the authorization
// file refuses it, and it is lost.
func TestProductionDeadLetterMovedBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		user string // of the messages that are moved back
		runs bool
	}{
		"by the run book":      {asServer, true},
		"by the management UI": {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := inProduction(t)
			servers := p.as(asServer)
			servers.Serve(rig.Methods{}).Close() // makes the queues
			own, responses := p.inbox(p.as(asClient), asClient)
			err := publishing(exchange, requests, amqp.Publishing{
				AppId: "work", Type: "rpc.v1", UserId: asClient, ReplyTo: own, CorrelationId: "1", Body: []byte("x"),
			})(p.as(asClient).Raw())
			if err != nil {
				t.Fatal(err)
			}
			bury(t, servers)
			callers := make(chan string, 2)
			mended := servers.Serve(rig.Methods{"work": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
				callers <- req.User
				return append([]byte("done "), req.Body...), nil
			}}, serverInProduction(t)...)
			if d := rig.Recv(t, responses, "the error of the dead letter"); d.Headers["rpc-code"] != string(amqpx.CodeInternal) {
				t.Errorf("the caller of a dead letter got %q, %v", d.Body, d.Headers)
			}
			p.redrive(c.user)
			if c.runs {
				if user := rig.Recv(t, callers, "the request to run"); user != asClient {
					t.Errorf("ran as the request of %q, want %q", user, asClient)
				}
				if got := responseTo(t, responses, "1"); got != "done x" {
					t.Errorf("the caller got %q", got)
				}
			} else {
				rig.Eventually(t, "the request is refused", func() bool { return mended.Stats().Refused == 1 })
			}
			rig.Eventually(t, "the request is done with", func() bool { return mended.Stats().InFlight == 0 })
			ch := p.as(asOperator).Raw()
			for _, queue := range []string{requests, retries, deadLetters} {
				if q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil); err != nil || q.Messages != 0 {
					t.Errorf("%d messages in %s, %v", q.Messages, queue, err)
				}
			}
			if len(callers) != 0 || mended.Stats().Dead != 1 {
				t.Errorf("%d further runs, %+v", len(callers), mended.Stats())
			}
		})
	}
}
