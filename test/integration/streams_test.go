//go:build integration

package integration

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// source sends as many items of a size as the first item says.
func source(_ context.Context, s *amqpx.ServerStream) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	n, size := binary.BigEndian.Uint64(first), binary.BigEndian.Uint64(first[8:])
	item := make([]byte, size)
	for i := range n {
		if size >= 8 {
			binary.BigEndian.PutUint64(item, i)
		}
		if err := s.Send(item); err != nil {
			return err
		}
	}
	return nil
}

// sourceRequest is the request for n items of a size.
func sourceRequest(n, size int) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(n))
	return binary.BigEndian.AppendUint64(b, uint64(size))
}

// mirror sends back each item.
func mirror(_ context.Context, s *amqpx.ServerStream) error {
	for item, err := range s.All() {
		if err != nil {
			return err
		}
		if err := s.Send(item); err != nil {
			return err
		}
	}
	return nil
}

// serveStreams runs a server at url until the test ends.
func serveStreams(t testing.TB, r *rig.Rig, url string, methods map[string]amqpx.StreamHandler, opts ...amqpx.ServerOption) *amqpx.Server {
	t.Helper()
	s, err := amqpx.NewServer(url, append([]amqpx.ServerOption{amqpx.WithQueue(r.Queue)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range methods {
		if err := s.HandleStream(name, h); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Log("the server:", err)
		}
	})
	if err := s.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	return s
}

// numbers ranges over a server stream and checks its order.
func numbers(t testing.TB, c *amqpx.Client, ctx context.Context, n, size int) (got int, failed error) { //nolint:revive // the client is the subject.
	t.Helper()
	for item, err := range c.Stream(ctx, "source", sourceRequest(n, size)) {
		if err != nil {
			return got, err
		}
		if len(item) != size || size >= 8 && binary.BigEndian.Uint64(item) != uint64(got) {
			t.Fatalf("item %d: %d bytes, %x", got, len(item), item[:min(8, len(item))])
		}
		got++
	}
	return got, nil
}

func TestStreams(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := serveStreams(t, r, r.URL, map[string]amqpx.StreamHandler{
		"source": source, "mirror": mirror,
		"fails": func(_ context.Context, s *amqpx.ServerStream) error {
			_ = s.SetHeader(map[string]any{"h": []any{"1", "2"}})
			_ = s.SetTrailer(map[string]any{"t": []byte{0xff, 0}})
			_ = s.Send([]byte(s.Request().User))
			return amqpx.Errorf(amqpx.CodeNotFound, "nothing")
		},
	})
	client := r.Client()
	ctx := rig.Patience(t)
	for _, size := range []int{0, 100, 200_000} {
		n := 400_000 / max(size, 20)
		got, err := numbers(t, client, ctx, n, size)
		if got != n || err != nil {
			t.Errorf("%d items of %d bytes, want %d; error %v", got, size, n, err)
		}
	}
	s, err := client.Open(ctx, "mirror")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := s.Send([]byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if item, err := s.Recv(); err != nil || string(item) != fmt.Sprint(i) {
			t.Fatalf("item %d: %q, error %v", i, item, err)
		}
	}
	_ = s.CloseSend()
	if _, err := s.Recv(); err != io.EOF { //nolint:errorlint // as documented.
		t.Errorf("error %v", err)
	}
	failed, _ := client.Open(ctx, "fails")
	header, err := failed.Header()
	if values, _ := header["h"].([]any); err != nil || len(values) != 2 {
		t.Errorf("headers %v, error %v", header, err)
	}
	if item, err := failed.Recv(); err != nil || string(item) == "" {
		t.Errorf("user %q, error %v", item, err)
	}
	if _, err := failed.Recv(); amqpx.CodeOf(err) != amqpx.CodeNotFound || amqpx.OutcomeOf(err) != amqpx.Ran {
		t.Errorf("error %v", err)
	}
	if got, _ := failed.Trailer()["t"].([]byte); string(got) != "\xff\x00" {
		t.Errorf("trailers %v", failed.Trailer())
	}
	if _, err := client.Open(ctx, "other"); err != nil {
		t.Error(err)
	}
	for _, err := range client.Stream(ctx, "other", nil) {
		if amqpx.CodeOf(err) != amqpx.CodeUnimplemented || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
			t.Errorf("error %v", err)
		}
	}
	rig.Eventually(t, "all streams have ended", func() bool { return server.Stats().Streams.Open == 0 && client.Stats().Streams.Open == 0 })
}

// The connection of either side is cut: both learn it, with the number of items, and the next stream
// works.
func TestStreamsAndLostConnections(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"server", "client"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			proxy := r.Proxy()
			urls := map[string]string{"server": r.URL, "client": r.URL}
			urls[side] = proxy.URL()
			ended := make(chan error, 10)
			keepAlive := amqpx.WithStreamKeepAlive(time.Second)
			serveStreams(t, r, urls["server"], map[string]amqpx.StreamHandler{
				"source": source,
				"wait": func(ctx context.Context, s *amqpx.ServerStream) error {
					_ = s.Send([]byte("one"))
					<-ctx.Done()
					ended <- context.Cause(ctx)
					return ctx.Err()
				},
			}, keepAlive)
			client := r.ClientAt(urls["client"], keepAlive)
			s, err := client.Open(rig.Patience(t), "wait")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			proxy.Cut()
			_, err = s.Recv()
			if amqpx.CodeOf(err) != amqpx.CodeUnavailable || amqpx.ProgressOf(err).Received != 1 {
				t.Errorf("the client: %v, %+v", err, amqpx.ProgressOf(err))
			}
			if err := rig.Recv(t, ended, "the end of the handler"); amqpx.CodeOf(err) != amqpx.CodeUnavailable {
				t.Errorf("the server: %v", err)
			}
			t.Logf("both know it after %v: %v", time.Since(begun), err)
			rig.Eventually(t, "a stream works again", func() bool {
				got, err := numbers(t, client, rig.Patience(t), 1000, 100)
				return err == nil && got == 1000
			})
		})
	}
}

// A stalled reader takes bounded memory, and holds up no other stream.
func TestStalledStreams(t *testing.T) {
	r := rig.New(t)
	serveStreams(t, r, r.URL, map[string]amqpx.StreamHandler{"source": source, "mirror": mirror})
	client := r.Client()
	ctx := rig.Patience(t)
	if _, err := numbers(t, client, ctx, 10, 10); err != nil {
		t.Fatal(err)
	}
	const stalled = 5
	before := heap()
	var streams []*amqpx.ClientStream
	for range stalled {
		s, err := client.Open(ctx, "source")
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Send(sourceRequest(1<<40, 100))
		for range 20_000 { // so that the window has grown
			if _, err := s.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		streams = append(streams, s)
	}
	if _, err := numbers(t, client, ctx, 10_000, 100); err != nil {
		t.Error(err)
	}
	each := (heap() - before) / stalled
	t.Logf("%d KiB for both sides of each stalled stream", each>>10)
	if each > 2<<20 {
		t.Errorf("%d bytes for each stalled stream", each)
	}
	for _, s := range streams {
		s.Close()
	}
}

// heap returns the bytes in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Streams go on over a memory alarm of the broker, and end with a code when the broker is restarted.
func streamsInTrouble(t *testing.T, broker *rig.Broker) {
	t.Helper()
	r := rig.On(t, broker.URL)
	keepAlive := amqpx.WithStreamKeepAlive(200 * time.Millisecond)
	ticks := func(ctx context.Context, s *amqpx.ServerStream) error {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := uint64(0); ; i++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := s.Send(binary.BigEndian.AppendUint64(nil, i)); err != nil {
				return err
			}
		}
	}
	serveStreams(t, r, r.URL, map[string]amqpx.StreamHandler{"ticks": ticks, "source": source}, keepAlive)
	client := r.Ready(keepAlive)
	next := uint64(0)
	var failed error
	for item, err := range client.Stream(rig.Within(t, 2*time.Minute), "ticks", nil) { // rabbitmqctl is slow on a busy machine
		if failed = err; err != nil {
			break
		}
		if got := binary.BigEndian.Uint64(item); got != next {
			t.Fatalf("item %d, want %d", got, next)
		}
		switch next++; next {
		case 100:
			broker.Ctl("set_vm_memory_high_watermark", "0.0001")
			go func() { // the reader goes on meanwhile
				timer := time.NewTimer(3 * time.Second)
				defer timer.Stop()
				<-timer.C
				broker.Ctl("set_vm_memory_high_watermark", "0.9")
			}()
		case 3000:
			go broker.Do("restart")
		}
	}
	if next < 3000 || amqpx.CodeOf(failed) != amqpx.CodeUnavailable || amqpx.ProgressOf(failed).Received != next {
		t.Errorf("after %d items: %v, %+v", next, failed, amqpx.ProgressOf(failed))
	}
	if failed != nil && !strings.Contains(failed.Error(), "connection") {
		t.Errorf("error %v", failed)
	}
	rig.Eventually(t, "a stream works again", func() bool {
		got, err := numbers(t, client, rig.Patience(t), 1000, 100)
		return err == nil && got == 1000
	})
}

func TestStreamsAndBrokerInTrouble(t *testing.T) {
	t.Parallel()
	streamsInTrouble(t, rig.StartBroker(t))
}

// BenchmarkServerStream reads one stream of items of 100 bytes.
func BenchmarkServerStream(b *testing.B) {
	r := rig.New(b)
	serveStreams(b, r, r.URL, map[string]amqpx.StreamHandler{"source": source})
	client := r.Client()
	ctx := context.Background()
	if _, err := numbers(b, client, ctx, 100_000, 100); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	got, err := numbers(b, client, ctx, b.N, 100)
	if err != nil || got != b.N {
		b.Fatal(got, err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
}

// BenchmarkPingPong sends an item and waits for its copy, beside a call of the same size.
func BenchmarkPingPong(b *testing.B) {
	r := rig.New(b)
	serveStreams(b, r, r.URL, map[string]amqpx.StreamHandler{"mirror": mirror})
	client := r.Client()
	s, err := client.Open(context.Background(), "mirror")
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	item := []byte{1}
	for b.Loop() {
		if err := s.Send(item); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnaryCall is BenchmarkPingPong with calls.
func BenchmarkUnaryCall(b *testing.B) {
	r := rig.New(b)
	r.Serve(rig.Methods{"echo": echo})
	client := r.Ready()
	item := []byte{1}
	for b.Loop() {
		if _, err := client.Call(context.Background(), "echo", item); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCanceledOpening: a stream that is canceled while its opening waits for a server with room does
// not run when the server has room again.
func TestCanceledOpening(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	runs := make(chan string, 10)
	server := serveStreams(t, r, r.URL, map[string]amqpx.StreamHandler{"wait": func(ctx context.Context, s *amqpx.ServerStream) error {
		first, err := s.Recv()
		if err != nil {
			return err
		}
		runs <- string(first)
		<-ctx.Done()
		return ctx.Err()
	}}, amqpx.WithMaxStreams(1, 1))
	client := r.Ready()
	open := func(name string) *amqpx.ClientStream {
		t.Helper()
		s, err := client.Open(rig.Patience(t), "wait", amqpx.WaitForServer())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send([]byte(name)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := open("first")
	rig.Recv(t, runs, "the first handler")
	second := open("second")
	openings := r.Raw()
	rig.Eventually(t, "the opening waits", func() bool {
		q, err := openings.QueueDeclarePassive(r.Queue.Name+".streams", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Messages == 1
	})
	second.Close()
	if _, err := second.Recv(); amqpx.CodeOf(err) != amqpx.CodeCanceled {
		t.Errorf("the second stream ended with %v", err)
	}
	for range 2 { // the cancellation comes before
		if _, err := client.Ping(rig.Patience(t)); err != nil {
			t.Fatal(err)
		}
	}
	first.Close()
	rig.Eventually(t, "the opening is refused", func() bool { return server.Stats().Streams.Refused == 1 })
	third := open("third")
	if got := rig.Recv(t, runs, "the third handler"); got != "third" {
		t.Errorf("the %s stream ran", got)
	}
	third.Close()
}
