//go:build integration

package interop

import (
	"encoding/json"
	"maps"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// callers is the number of concurrent callers, large enough for batches.
const callers = 64

// TestLaneIsNotUsedWithoutAServerThatUnpacks: a server without support for batches never
// receives a batch.
func TestLaneIsNotUsedWithoutAServerThatUnpacks(t *testing.T) {
	t.Parallel()
	r := transient(t)
	server := pythonServer(t, r)
	client := r.Ready()
	const each = 20
	callTogether(t, client, callers, each)
	if got, want := client.Stats(), (amqpx.ClientStats{OK: callers * each}); got != want {
		t.Errorf("client counted %+v, want %+v", got, want)
	}
	if q := rig.Manage(t).Queues(r.URL, r.BatchQueue()); len(q) != 0 {
		t.Errorf("queues %v, though no server unpacks", q)
	}
	if got := answered(t, server); got != callers*each {
		t.Errorf("the Python server answered %d, want %d", got, callers*each)
	}
}

// TestMixedFleetWithTheLane: this project's server takes the batches, while both kinds of
// servers take single requests.
func TestMixedFleetWithTheLane(t *testing.T) {
	t.Parallel()
	r := transient(t)
	theirs := pythonServer(t, r)
	ours := r.Serve(letters(), amqpx.WithPrefetch(1))
	client := r.Ready()
	const each = 50
	callTogether(t, client, callers, each)
	callFromPython(t, r, map[string]int{"b": 100})
	const calls = callers*each + 100
	st := client.Stats()
	if st.OK != callers*each || st.Failed != 0 || st.Batched == 0 {
		t.Errorf("client counted %+v, want every call answered, and batches", st)
	}
	byTheirs := answered(t, theirs)
	if err := ours.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	byOurs := int(ours.Stats().OK)
	if byTheirs == 0 || byOurs < int(st.Batched) || byOurs+byTheirs != calls {
		t.Errorf("ours answered %d, %d of them from batches, theirs %d, want a share each of %d", byOurs, st.Batched, byTheirs, calls)
	}
}

// TestPythonServerUnpacks: a server in another language can unpack batches of requests and
// respond in batches.
func TestPythonServerUnpacks(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	ours := r.Serve(letters(), amqpx.WithBatch(amqpx.BatchOff))
	theirs := script(t, "batch_server.py", r.URL, r.Queue.Name)
	theirs.Says("ready")
	client := r.Ready()
	const each = 50
	callTogether(t, client, callers, each)
	st := client.Stats()
	if st.OK != callers*each || st.Batched == 0 || st.Unknown+st.Duplicates+st.Late != 0 {
		t.Errorf("client counted %+v, want every call answered, and batches", st)
	}
	if got := answered(t, theirs); got != int(st.Batched) {
		t.Errorf("the Python server answered %d, want %d, all that travelled in batches", got, st.Batched)
	}
	if got := ours.Stats().OK + st.Batched; got != callers*each {
		t.Errorf("%d calls ran, want %d", got, callers*each)
	}
}

// TestPythonClientSendsBatches: a client in another language can send batches and read the
// responses.
func TestPythonClientSendsBatches(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(letters())
	want := map[string]map[string]int{
		"a": {"a": 1234}, "b": {"b": 777}, "unknown": {"error unimplemented": 5},
	}
	p := script(t, "batch_client.py", r.URL, r.Queue.Name, "a=1234", "b=777", "unknown=5")
	var got map[string]map[string]int
	if err := json.Unmarshal([]byte(p.Says("{")), &got); err != nil {
		t.Errorf("the Python client's response: %v", err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the Python client ended with %v", err)
	}
	if !maps.EqualFunc(got, want, maps.Equal) {
		t.Errorf("the Python client got %v, want %v", got, want)
	}
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if got, want := server.Stats(), (amqpx.ServerStats{Requests: 2016, DefaultExchange: 2016, Batched: 2016, OK: 2011, Refused: 5, Workers: amqpx.DefaultWorkers}); got != want {
		t.Errorf("server counted %+v, want %+v", got, want)
	}
	q, err := r.Raw().QueueDeclarePassive(r.BatchQueue(), true, false, false, false, nil)
	if err != nil || q.Messages != 0 {
		t.Errorf("%d batches were not acknowledged, %v", q.Messages, err)
	}
}
