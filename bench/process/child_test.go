package process

import (
	"encoding/json"
	"io"
	"testing"
	"time"

	"rabbitmq-rpc/bench/contender"
)

// child runs serveChild in this process and exchanges JSON lines over pipes.
type child struct {
	t    *testing.T
	in   *io.PipeWriter
	send *json.Encoder
	recv *json.Decoder
	done chan error
}

func startChild(t *testing.T, b childConfig) (*child, reply) {
	t.Helper()
	in, toChild := io.Pipe()
	fromChild, out := io.Pipe()
	c := &child{t, toChild, json.NewEncoder(toChild), json.NewDecoder(fromChild), make(chan error, 1)}
	go func() { // ends with its input; awaited by end
		err := ServeChild(t.Context(), in, out)
		_ = out.Close()
		c.done <- err
	}()
	return c, c.ask(b)
}

func (c *child) ask(question any) reply {
	c.t.Helper()
	var r reply
	if err := c.send.Encode(question); err != nil {
		c.t.Fatal(err)
	}
	if err := c.recv.Decode(&r); err != nil {
		c.t.Fatal(err, <-c.done)
	}
	if r.Error != "" {
		c.t.Fatal(r.Error)
	}
	return r
}

func (c *child) end() {
	c.t.Helper()
	_ = c.in.Close()
	if err := <-c.done; err != nil {
		c.t.Error(err)
	}
}

// TestSides runs the contenders without RabbitMQ, with all their processes as children, and
// checks their results and usage.
func TestSides(t *testing.T) {
	t.Parallel()
	for _, name := range []string{contender.CoreNATS, contender.GRPC} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := childConfig{Contender: name, Env: contender.Environment{Queue: "bench", Workers: 2}}
			if name == contender.CoreNATS {
				b.Role = contender.RoleBroker
				broker, r := startChild(t, b)
				defer broker.end()
				b.Env.Endpoint = r.Endpoint
			}
			b.Role = contender.RoleServer
			server, r := startChild(t, b)
			defer server.end()
			if r.Endpoint != "" {
				b.Env.Endpoint = r.Endpoint
			}
			b.Role = contender.RoleClient
			client, _ := startChild(t, b)
			defer client.end()
			for _, turn := range []Turn{
				{Callers: 3, Duration: time.Minute, MaxCalls: 30},
				{Callers: 3, Duration: time.Minute, MaxCalls: 30, Body: 1000},
				{Rate: 10_000, InFlight: 10, Duration: time.Minute, MaxCalls: 30},
			} {
				if r := client.ask(command{Turn: &turn}); r.Outcome.Calls != 30 || r.Outcome.All.Max == 0 {
					t.Errorf("%+v: outcome %+v, want 30 calls", turn, r.Outcome)
				}
			}
			if u := server.ask(command{}).Usage; u.CPU == 0 || u.RSS == 0 || u.Peak < u.RSS {
				t.Errorf("usage %+v", u)
			}
		})
	}
}
