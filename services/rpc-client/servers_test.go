package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"rabbitmq-rpc/internal/placement"
	"rabbitmq-rpc/pkg/amqpx"
)

// servers is a fleet that responds or fails.
type servers struct {
	all      []amqpx.ServerInfo
	err      error
	unlinked error
}

func (s servers) WaitReady(context.Context) error                     { return s.unlinked }
func (s servers) Servers(context.Context) ([]amqpx.ServerInfo, error) { return s.all, s.err }

func twoServers() []amqpx.ServerInfo {
	return []amqpx.ServerInfo{
		{
			ID: "0123456789", Name: "rpc-server", Version: "v1", Host: "one", PID: 7, Node: "rabbit@a", Broker: "a:5672", State: "ready", UptimeSeconds: 90, Workers: 64, RoundTripMS: 1.25,
			Methods: []amqpx.MethodInfo{{Name: "b", OK: 1000, Failed: 2, LatencyMS: amqpx.Latency{Mean: 0.5, P50: 0.25, P99: 1.5, Max: 2}}},
			Stats:   &amqpx.ServerStats{Requests: 1002, OK: 1000, Failed: 2, Busy: 3, Stuck: 1},
		},
		{ID: "ab", Name: "evil\x1b[2J\n\tname" + strings.Repeat("x", 100), State: "draining"},
	}
}

func TestFleetAsATable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := listFleet(t.Context(), servers{all: twoServers()}, "table", &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	fields := strings.Fields(lines[1])
	want := []string{"01234567", "rpc-server", "v1", "one", "7", "rabbit@a", "ready", "1", "1m30s", "3/64", "1", "0", "1002", "1000", "2", "0", "1.2"}
	if strings.Join(fields, " ") != strings.Join(want, " ") {
		t.Errorf("line %q, want %q", fields, want)
	}
	if method := strings.Fields(lines[5]); strings.Join(method, " ") != "01234567 b 1000 2 0.500 0.250 1.500 2.000" {
		t.Errorf("function %q in %q", method, out.String())
	}
	if strings.ContainsAny(out.String(), "\x1b\t") || strings.Contains(out.String(), strings.Repeat("x", 50)) {
		t.Errorf("a server's text is printed as it is: %q", out.String())
	}
}

func TestPlacementOfTheFleet(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := writePlacement(&out, nil); err != nil || !strings.Contains(out.String(), "unknown") {
		t.Errorf("%v: %q", err, out.String())
	}
	out.Reset()
	where := &placement.Placement{
		Queues: []placement.Queue{
			{Name: "q", Type: "quorum", Node: "rabbit@c", Members: []string{"rabbit@a", "rabbit@b", "rabbit@c"}, Online: []string{"rabbit@b", "rabbit@c"}},
			{Name: "q.control.1", Type: "classic", Node: "rabbit@a"},
			{Name: "q.reply.1", Type: "classic", Node: "rabbit@a"},
			{Name: "q.reply.2", Type: "classic", Node: "rabbit@a"},
		},
		Connections: []placement.Connections{{Name: "evil\x1b", Node: "rabbit@b", Count: 2}},
	}
	if err := writePlacement(&out, where); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"q  ", "quorum, leader rabbit@c, 2 of 3 members online", "2 classic on rabbit@a", "connection evil?", "2 on rabbit@b"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
	if strings.Contains(out.String(), ".control.") {
		t.Errorf("%q has the queues of the control plane", out.String())
	}
}

func TestFleetAsJSON(t *testing.T) {
	t.Parallel()
	for _, all := range [][]amqpx.ServerInfo{twoServers(), nil} {
		var out bytes.Buffer
		err := listFleet(t.Context(), servers{all: all}, "json", &out)
		if errors.Is(err, errNoServers) != (all == nil) {
			t.Errorf("%d servers: %v", len(all), err)
		}
		var got []amqpx.ServerInfo
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != len(all) || got == nil {
			t.Errorf("%s: %v", out.String(), err)
		}
	}
}

func TestFleetThatCannotBeListed(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		fleet servers
		want  error
	}{
		"no link":      {servers{unlinked: broken}, broken},
		"no server":    {servers{err: amqpx.ErrUnroutable}, errNoServers},
		"no responses": {servers{}, errNoServers},
		"failed":       {servers{err: broken}, broken},
	} {
		var out bytes.Buffer
		if err := listFleet(t.Context(), c.fleet, "table", &out); !errors.Is(err, c.want) || out.Len() > 0 {
			t.Errorf("%s: %v, printed %q", name, err, out.String())
		}
	}
}
