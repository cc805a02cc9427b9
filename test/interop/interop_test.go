//go:build integration

package interop

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

func TestPythonClientCallsOurServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(letters())
	callFromPython(t, r, map[string]int{"b": 1000, "a": 1})
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if got, want := server.Stats(), (amqpx.ServerStats{Requests: 1001, DefaultExchange: 1001, OK: 1001, Workers: amqpx.DefaultWorkers}); got != want {
		t.Errorf("server counted %+v, want %+v", got, want)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests were not acknowledged", left)
	}
}

func TestOurClientCallsPythonServer(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.ReplyMode{amqpx.ReplyQueue, amqpx.ReplyDirect} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := transient(t)
			server := pythonServer(t, r)
			client := r.Ready(amqpx.WithReplyMode(mode))
			const calls = 1000
			for i := range calls {
				if got := rig.Call(t, client, "b", []byte("request")); string(got) != "b" {
					t.Fatalf("call %d: got %q, want %q", i, got, "b")
				}
			}
			if got := answered(t, server); got != calls {
				t.Errorf("the Python server answered %d, want %d", got, calls)
			}
		})
	}
}

// TestUnknownFunctionEndsPythonServers: a Python server dies of an unknown method and its
// requests are redelivered to the next server. The fatal call, which waits for a server, ends at its
// deadline, and its request has expired by then.
func TestUnknownFunctionEndsPythonServers(t *testing.T) {
	t.Parallel()
	r := transient(t)
	first := pythonServer(t, r)
	client := r.Ready()
	begun := time.Now()
	_, err := client.Call(rig.Within(t, 2*time.Second), "unknown", []byte("request"), amqpx.WaitForServer())
	if !errors.Is(err, context.DeadlineExceeded) || amqpx.CodeOf(err) != amqpx.CodeDeadlineExceeded {
		t.Errorf("got %v, want the deadline", err)
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("took %v, want the deadline", took)
	}
	if err := first.Wait(); err == nil {
		t.Error("the Python server survived; this test is about one that does not")
	}
	second := pythonServer(t, r)
	if got := rig.Call(t, client, "b", []byte("request")); string(got) != "b" {
		t.Errorf("got %q, want %q", got, "b")
	}
	if got := answered(t, second); got != 1 {
		t.Errorf("the second server answered %d, want 1", got)
	}
}

func TestBothKindsOfServerShareAQueue(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		first bool // whether ours declares the queue
	}{{"ours first", true}, {"theirs first", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := transient(t)
			var ours *rig.Server
			var theirs *rig.Program
			if c.first {
				ours = r.Serve(letters(), amqpx.WithPrefetch(1))
				theirs = pythonServer(t, r)
			} else {
				theirs = pythonServer(t, r)
				ours = r.Serve(letters(), amqpx.WithPrefetch(1))
			}
			const callers, each = 8, 50
			callTogether(t, r.Ready(), callers, each)
			callFromPython(t, r, map[string]int{"b": 100})
			const calls = callers*each + 100
			byTheirs := answered(t, theirs)
			if err := ours.Drain(); err != nil {
				t.Errorf("drain: %v", err)
			}
			byOurs := int(ours.Stats().OK)
			if byOurs == 0 || byTheirs == 0 || byOurs+byTheirs != calls {
				t.Errorf("ours answered %d, theirs %d, want a share each of %d", byOurs, byTheirs, calls)
			}
		})
	}
}

// callTogether makes calls from several concurrent callers.
func callTogether(t *testing.T, client *amqpx.Client, callers, each int) {
	t.Helper()
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for range each {
				if got, err := client.Call(rig.Patience(t), "a", []byte("request")); err != nil || string(got) != "a" {
					t.Errorf("got %q, %v, want %q", got, err, "a")
					return
				}
			}
		})
	}
	all.Wait()
}

// report is the checked part of the client's report.json.
type report struct {
	Calls  int            `json:"calls"`
	OK     int            `json:"ok"`
	Errors map[string]int `json:"errors"`
	Lost   int            `json:"lost"`
}

func TestOurProgramsAndPythonOnes(t *testing.T) {
	t.Parallel()
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		r := rig.New(t)
		server := rig.Run(t, settings(r), rig.Build(t, "rpc-server"))
		server.Says(`"ready"`)
		callFromPython(t, r, map[string]int{"b": 1000, "a": 1})
		server.Terminate()
		if err := server.Wait(); err != nil {
			t.Errorf("rpc-server ended with %v", err)
		}
		if left := r.Inspect().Messages; left != 0 {
			t.Errorf("%d requests were not acknowledged", left)
		}
	})
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		r := transient(t)
		server := pythonServer(t, r)
		dir := t.TempDir()
		const calls = 1000
		client := rig.Run(t, append(settings(r), "RPC_CALLS="+strconv.Itoa(calls), "RPC_REPORT_DIR="+dir),
			rig.Build(t, "rpc-client"))
		if err := client.Wait(); err != nil {
			t.Errorf("rpc-client ended with %v", err)
		}
		content, err := os.ReadFile(filepath.Join(dir, "report.json"))
		if err != nil {
			t.Fatal(err)
		}
		var got report
		if err := json.Unmarshal(content, &got); err != nil {
			t.Fatal(err)
		}
		if got.Calls != calls || got.OK != calls || got.Lost != 0 || len(got.Errors) != 0 {
			t.Errorf("report %+v, want %d calls, all ok", got, calls)
		}
		if got := answered(t, server); got != calls {
			t.Errorf("the Python server answered %d, want %d", got, calls)
		}
	})
}

// settings returns the environment of this project's programs for a rig.
func settings(r *rig.Rig) []string {
	return []string{
		"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name, "RPC_QUEUE_DURABLE=" + strconv.FormatBool(!r.Queue.Transient),
		"HTTP_ADDR=127.0.0.1:0", "LOG_FORMAT=json", "LOG_LEVEL=info",
	}
}
