//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestBodiesOfEverySizeShareTheLane: batches and the calls in them are bounded in bytes, and
// larger calls arrive, too.
func TestBodiesOfEverySizeShareTheLane(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{
		"echo": echo,
		// larger returns a response much larger than the request.
		"larger": func(_ context.Context, req *amqpx.Request) ([]byte, error) { return bytes.Repeat(req.Body, 100), nil },
	})
	client := r.Ready()
	openLane(t, client)
	const record, batch = 32 << 10, 256 << 10
	sizes := []int{
		0, 0, 1, 2, 127, 128, 1000, 16 << 10, 16 << 10, record / 2, record/2 + 1,
		record - 300, record - 64, record - 1, record, record + 1, batch - 300, batch + 300,
	}
	var all sync.WaitGroup
	for caller := range 64 {
		random := rand.New(rand.NewPCG(1, uint64(caller)))
		all.Go(func() {
			for range 3 {
				for _, i := range random.Perm(len(sizes)) {
					body := bytes.Repeat([]byte{byte(caller)}, sizes[i])
					got, err := client.Call(rig.Patience(t), "echo", body)
					if err != nil || !bytes.Equal(got, body) {
						t.Errorf("%d bytes: got %d bytes, %v", len(body), len(got), err)
					}
				}
				got, err := client.Call(rig.Patience(t), "larger", bytes.Repeat([]byte{byte(caller)}, 1000))
				if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(caller)}, 100_000)) {
					t.Errorf("a larger answer: got %d bytes, %v", len(got), err)
				}
			}
		})
	}
	all.Wait()
	laneWell(t, r, server, client)
}

// laneWell checks after a client's calls for unacknowledged messages and lost connections on
// either side. It drains the only server.
func laneWell(t *testing.T, r *rig.Rig, server *rig.Server, client *amqpx.Client) {
	t.Helper()
	rig.Eventually(t, "nothing is in flight", func() bool { return server.Stats().InFlight == 0 })
	if st := client.Stats(); st.Batched == 0 || st.Reconnects+st.Unknown+st.Duplicates+st.Late != 0 {
		t.Errorf("client counted %+v", st)
	}
	if n := server.Stats().Reconnects; n != 0 {
		t.Errorf("server counted %d reconnects", n)
	}
	nothingHeld(t, r, server)
}

// TestHeadersShareTheLane: calls with text headers are sent in batches and calls with other
// headers alone, and all headers arrive unchanged.
func TestHeadersShareTheLane(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"echo": echo, "headers": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return described(req.Header), nil
	}})
	client := r.Ready()
	openLane(t, client)
	headers := []map[string]any{
		nil,
		{"text": "x"},
		{"empty": "", "": "no name"},
		{"utf-8": "ä\x00€", "bytes": "\xff\xfe"},
		{strings.Repeat("n", 255): "long name", "long": strings.Repeat("v", 60_000)},
		{"number": int64(7)},
		{"text": "x", "flag": true, "nothing": nil},
		{"list": []any{"x", int32(1)}},
	}
	before := client.Stats().Batched
	var all sync.WaitGroup
	for caller := range 64 {
		all.Go(func() {
			for i := range headers {
				h := headers[(caller+i)%len(headers)]
				got, err := client.Call(rig.Patience(t), "headers", nil, amqpx.WithHeader(h))
				if want := described(h); err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %.200q, %v, want %.200q", got, err, want)
				}
			}
		})
	}
	all.Wait()
	if client.Stats().Batched == before {
		t.Error("no call with headers travelled in a batch")
	}
	laneWell(t, r, server, client)
}

// described returns a text for a comparison of headers; only equal headers have equal texts.
func described(h map[string]any) []byte {
	var all []string
	for name, v := range h {
		all = append(all, fmt.Sprintf("%q: %T %#v", name, v, v))
	}
	slices.Sort(all)
	return []byte(strings.Join(all, "\n"))
}

// TestBoundOfCallsThatShareTheLane: a client's limit of calls in flight also holds for calls
// in batches.
func TestBoundOfCallsThatShareTheLane(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	r.Serve(rig.Methods{"echo": echo, "slow": slow.handle}, amqpx.WithWorkers(200))
	const most, calls = 100, 150
	client := r.Ready(amqpx.WithMaxInFlight(most))
	openLane(t, client)
	var all []<-chan outcome
	for range calls {
		all = append(all, begin(rig.Patience(t), client, "slow", nil))
	}
	for range most {
		rig.Recv(t, slow.entered, "as many calls as are allowed")
	}
	rig.Eventually(t, "the others are refused", func() bool { return client.Stats().Rejected == calls-most })
	close(slow.release)
	refused := 0
	for _, c := range all {
		switch got := rig.Recv(t, c, "the call to settle"); {
		case errors.Is(got.err, amqpx.ErrTooManyCalls):
			refused++
		case got.err != nil:
			t.Errorf("a call within the bound: %v", got.err)
		}
	}
	if refused != calls-most || client.Stats().Batched == 0 {
		t.Errorf("%d refused, want %d; client counted %+v", refused, calls-most, client.Stats())
	}
}
