package process

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/internal/loadgen"
)

// programs writes scripts in place of rpc-server and rpc-client, and returns their directory.
func programs(t *testing.T, client string) string {
	t.Helper()
	dir := t.TempDir()
	const server = `[ "$RPC_QUEUE $AMQP_URL $RPC_BATCH" = "bench amqp://nowhere.invalid/ off" ] || exit 3
echo '{"msg":"ready"}' >&2
exec tail -f /dev/null
`
	for name, script := range map[string]string{"rpc-server": server, "rpc-client": client} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestPair runs the processes of the shipped pair with scripts in place of the programs.
func TestPair(t *testing.T) {
	t.Parallel()
	const client = `echo '{"passed":true,"calls":30,"ok":30,"seconds":1.5,"latency_ms":{"p50":2,"p99":3,"p999":4,"max":5}}' >"$RPC_REPORT_DIR/report.json"`
	b := childConfig{Contender: contender.PairSingle, Env: contender.Environment{Queue: "bench", URL: "amqp://nowhere.invalid/", Programs: programs(t, client)}}
	b.Role = contender.RoleServer
	server, _ := startChild(t, b)
	defer server.end()
	if u := server.ask(command{}).Usage; u.RSS == 0 || u.Peak < u.RSS {
		t.Errorf("usage of the server %+v", u)
	}
	b.Role = contender.RoleClient
	caller, _ := startChild(t, b)
	defer caller.end()
	r := caller.ask(command{Turn: &Turn{Callers: 3, Duration: time.Second, MaxCalls: 30}})
	want := Outcome{Calls: 30, Elapsed: 1500 * time.Millisecond, All: Latencies{P50: 2000, P99: 3000, P999: 4000, Max: 5000}}
	if *r.Outcome != want {
		t.Errorf("outcome %+v, want %+v", *r.Outcome, want)
	}
	if r.Usage.CPU == 0 {
		t.Error("the client that has ended took no time")
	}
}

// A run with failed calls is an error and no figure.
func TestPairThatFails(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"fails":     "echo refused >&2; exit 1",
		"no report": "exit 0",
		"not all":   `echo '{"calls":3,"ok":2,"seconds":1}' >"$RPC_REPORT_DIR/report.json"`,
	} {
		e, err := contender.Find(contender.Pair)
		if err != nil {
			t.Fatal(err)
		}
		pair, _ := e.Contender.(contender.Native)
		c, err := pair.Dial(t.Context(), contender.Environment{Programs: programs(t, script)})
		if err != nil {
			t.Fatal(err)
		}
		if o, err := drive(t.Context(), c, Turn{Callers: 1, Duration: time.Second, MaxCalls: 3}, loadgen.Pacer{}); err == nil {
			t.Errorf("%s: outcome %+v", name, o)
		}
		if o, err := drive(t.Context(), c, Turn{Callers: 1, Duration: time.Second, Body: 5}, loadgen.Pacer{}); err == nil {
			t.Errorf("a body of its own: outcome %+v", o)
		}
	}
}
