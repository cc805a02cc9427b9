//go:build integration

package integration

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxgrpc"
	"rabbitmq-rpc/test/internal/rig"
)

// exampleVhost returns the AMQP URL of a new virtual host, because the examples have queues
// with fixed names.
func exampleVhost(t *testing.T) string {
	t.Helper()
	tenant := rig.Manage(t).Tenant()
	tenant.Grant(".*")
	return tenant.URL()
}

// TestExamples runs the programs in the folder examples that end by themselves.
func TestExamples(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"errors": {
			`tv: 3 in stock`,
			`sofa: not sold here`,
			`radio: internal: internal error; outcome: ran`,
		},
		"deadline": {
			`quickly: gateway has (1m0s|5\ds), inventory has (1m0s|5\ds)`,
			`slowly: deadline_exceeded`,
		},
		"retry": {
			`unavailable: the warehouse restarts`,
			`placed <nil>`,
			`placed <nil>`,
			`<nil> 1 order, 2 runs`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			program := rig.BuildExample(t, name)
			cmd := exec.CommandContext(rig.Patience(t), program)
			cmd.Env = append(cmd.Environ(), "AMQP_URL="+exampleVhost(t))
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil || stderr.Len() > 0 {
				t.Errorf("%s: %v\n%s", name, err, &stderr)
			}
			got := slices.Collect(strings.Lines(string(out)))
			if len(got) != len(want) {
				t.Fatalf("%s prints %d lines, want %d:\n%s", name, len(got), len(want), out)
			}
			for i, line := range got {
				if !regexp.MustCompile("^" + want[i] + "\n$").MatchString(line) {
					t.Errorf("%s prints %q, want %q", name, line, want[i])
				}
			}
		})
	}
}

// TestExamplesServerAndClient runs the two programs of the README: the client prints the
// response of the server, and the server drains at SIGTERM.
func TestExamplesServerAndClient(t *testing.T) {
	t.Parallel()
	url := exampleVhost(t)
	env := []string{"AMQP_URL=" + url}
	server := rig.Run(t, env, rig.BuildExample(t, "server"))
	queue := amqpx.Queue{Name: "greetings"}
	client := exampleClient(t, url, queue)
	response := rig.Call(t, client, "greet", []byte("test"), amqpx.WaitForServer()) // the server is up
	if string(response) != "hello test" {
		t.Errorf("response %q", response)
	}
	_, err := client.Call(rig.Patience(t), "greet", nil)
	if amqpx.CodeOf(err) != amqpx.CodeInvalidArgument || amqpx.OutcomeOf(err) != amqpx.Ran {
		t.Errorf("a request without a name: %v, %v", err, amqpx.OutcomeOf(err))
	}
	caller := rig.Run(t, env, rig.BuildExample(t, "client"))
	caller.Says("hello world")
	if err := caller.Wait(); err != nil {
		t.Errorf("client: %v", err)
	}
	server.Terminate()
	if err := server.Wait(); err != nil {
		t.Errorf("server: %v", err)
	}
}

// TestExamplesGRPC runs the service of gRPC and its client.
func TestExamplesGRPC(t *testing.T) {
	t.Parallel()
	url := exampleVhost(t)
	env := []string{"AMQP_URL=" + url}
	server := rig.Run(t, env, rig.BuildExample(t, "grpc-server"))
	client := exampleClient(t, url, amqpx.Queue{Name: "greeter"})
	health := healthpb.NewHealthClient(amqpxgrpc.NewClientConn(client))
	if _, err := health.Check(rig.Patience(t), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil { // the server is up
		t.Fatal(err)
	}
	caller := rig.Run(t, env, rig.BuildExample(t, "grpc-client"))
	for _, line := range []string{"hello world", "InvalidArgument ran", "hello Ada", "hello Grace"} {
		caller.Says(line)
	}
	if err := caller.Wait(); err != nil {
		t.Errorf("client: %v", err)
	}
	server.Terminate()
	if err := server.Wait(); err != nil {
		t.Errorf("server: %v", err)
	}
}

// TestExamplesDrain signals the example drain while its handler works: the caller gets the
// response, and the program exits with code 0.
func TestExamplesDrain(t *testing.T) {
	t.Parallel()
	url := exampleVhost(t)
	server := rig.Run(t, []string{"AMQP_URL=" + url}, rig.BuildExample(t, "drain"))
	client := exampleClient(t, url, amqpx.Queue{Name: "reports"})
	settled := begin(rig.Patience(t), client, "report", nil, amqpx.WaitForServer())
	server.Says("report begun")
	server.Terminate()
	if got := rig.Recv(t, settled, "the response"); got.err != nil || string(got.response) != "report" {
		t.Errorf("response %q, %v", got.response, got.err)
	}
	server.Says("drained")
	if err := server.Wait(); err != nil {
		t.Errorf("server: %v", err)
	}
}

// TestExamplesShop runs the gateway of the example shop as one process, and its two services as
// another. All drain at SIGTERM.
func TestExamplesShop(t *testing.T) {
	t.Parallel()
	program, address := rig.BuildExample(t, "shop"), rig.FreeAddress(t, "127.0.0.1")
	env := []string{"AMQP_URL=" + exampleVhost(t), "HTTP_ADDR=" + address}
	services := rig.Run(t, env, program, "inventory", "orders")
	gateway := rig.Run(t, env, program, "gateway")
	place := func(tenant, key, body string) (status int, response string) {
		r, err := http.NewRequestWithContext(rig.Patience(t), http.MethodPost, "http://"+address+"/orders", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Tenant", tenant)
		r.Header.Set("Idempotency-Key", key)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		text, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	rig.Eventually(t, "an order is placed", func() bool { // the programs start at any time
		status, _ := place("alice", "first", `{"item": "tv", "count": 1}`)
		return status == http.StatusOK
	})
	for _, c := range []struct {
		tenant, key, body string
		status            int
		want              string
	}{
		{"alice", "second", `{"item": "tv", "count": 1}`, 200, `"id":"second"`},
		{"bob", "first", `{"item": "tv", "count": 2}`, 400, `"OUT_OF_STOCK"`},
		{"bob", "second", `{"item": "", "count": 2}`, 400, `"Field":"item"`},
		{"", "first", `{"item": "tv", "count": 1}`, 401, `"unauthenticated"`},
	} {
		if status, response := place(c.tenant, c.key, c.body); status != c.status || !strings.Contains(response, c.want) {
			t.Errorf("%+v: status %d, %s", c, status, response)
		}
	}
	for name, p := range map[string]*rig.Program{"gateway": gateway, "services": services} {
		p.Terminate()
		if err := p.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// exampleClient returns a client of an example's queue, closed with the test.
func exampleClient(t *testing.T, url string, queue amqpx.Queue) *amqpx.Client {
	t.Helper()
	client, err := amqpx.NewClient(url, amqpx.WithQueue(queue))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close a client: %v", err)
		}
	})
	return client
}
