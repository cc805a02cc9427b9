package amqpxtest

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// streamFaultCase is one stream of three items, each of which the server sends back, and what its
// client sees.
type streamFaultCase struct {
	openings, frames []Fault
	quorum, patient  bool
	timeout          time.Duration // 0: none

	code    amqpx.Code // "" for a stream that ends as it should
	outcome amqpx.Outcome
	is      error
	runs    int64
	most    time.Duration // that the stream takes
}

func streamFaultCases() map[string]streamFaultCase {
	const keepAlive = amqpx.DefaultStreamKeepAlive
	gone := streamFaultCase{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, runs: 1, most: 6 * keepAlive}
	late := streamFaultCase{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun, is: context.DeadlineExceeded, runs: 1, timeout: time.Second, most: time.Second}
	later := streamFaultCase{runs: 1, most: time.Second}
	ok := streamFaultCase{runs: 1}
	opening := func(c streamFaultCase, runs int64, faults ...Fault) streamFaultCase {
		c.openings, c.runs = faults, runs
		return c
	}
	frames := func(c streamFaultCase, faults ...Fault) streamFaultCase {
		c.frames = faults
		return c
	}
	with := func(c streamFaultCase, change func(*streamFaultCase)) streamFaultCase {
		change(&c)
		return c
	}
	return map[string]streamFaultCase{
		"no fault":                        ok,
		"opening, nack":                   opening(with(gone, func(c *streamFaultCase) { c.is = amqpx.ErrQueueUnavailable }), 0, Nack()),
		"opening, nack by a quorum queue": opening(streamFaultCase{quorum: true, patient: true, most: 2 * time.Second}, 1, Nack()),
		"opening, lose":                   opening(streamFaultCase{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: amqpx.ErrNoServer, most: 63 * time.Second}, 0, Lose()),
		"opening, lose, deadline":         opening(late, 0, Lose()),
		"opening, duplicate":              opening(ok, 1, Duplicate()),
		"opening, delay":                  opening(later, 1, Delay(time.Second)),
		"opening, disconnect before":      opening(gone, 0, DisconnectBefore()),
		"opening, disconnect after":       opening(gone, 1, DisconnectAfter()),
		"frames, nack":                    frames(gone, Pass(), Nack()),
		"frames, lose":                    frames(late, Pass(), Lose()),
		"frames, duplicate":               frames(ok, Duplicate(), Duplicate(), Duplicate()),
		"frames, delay":                   frames(later, Pass(), Delay(time.Second)),
		"frames, disconnect before":       frames(gone, Pass(), DisconnectBefore()),
		"frames, disconnect after":        frames(gone, Pass(), DisconnectAfter()),
	}
}

// TestFaultsOfStreams: each fault has the effect that the documentation of FailOpenings and FailFrames
// describes.
func TestFaultsOfStreams(t *testing.T) {
	t.Parallel()
	for name, c := range streamFaultCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { c.check(t) })
		})
	}
}

func (c *streamFaultCase) check(t *testing.T) {
	t.Helper()
	queue := amqpx.Queue{Name: "orders"}
	if c.quorum {
		queue.Type = amqpx.QueueQuorum
	}
	broker := NewBroker()
	server, err := amqpx.NewServer(URL, broker.Option(), amqpx.WithQueue(queue))
	if err != nil {
		t.Fatal(err)
	}
	var runs atomic.Int64
	if err := server.HandleStream("mirror", func(_ context.Context, s *amqpx.ServerStream) error {
		runs.Add(1)
		for item, err := range s.All() {
			if err := errors.Join(err, s.Send(item)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }() // ends with Shutdown
	client, err := amqpx.NewClient(URL, broker.Option(), amqpx.WithQueue(queue))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(server.WaitReady(t.Context()), client.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	broker.FailOpenings("orders", c.openings...)
	broker.FailFrames("orders", c.frames...)
	begun := time.Now()
	if err := c.mirror(t, client); amqpx.CodeOf(err) != c.code || err != nil && amqpx.OutcomeOf(err) != c.outcome || c.is != nil && !errors.Is(err, c.is) {
		t.Errorf("error %v; %v, want %v; %v: %v", err, amqpx.OutcomeOf(err), c.code, c.outcome, c.is)
	}
	if took := time.Since(begun); took > c.most {
		t.Errorf("the stream took %v, want at most %v", took, c.most)
	}
	<-time.After(time.Minute)
	if n := runs.Load(); n != c.runs {
		t.Errorf("the handler ran %d times, want %d", n, c.runs)
	}
	clean := &streamFaultCase{}
	if err := clean.mirror(t, client); err != nil {
		t.Errorf("a stream without faults: %v", err)
	}
	if err := errors.Join(client.Shutdown(t.Context()), server.Shutdown(t.Context()), <-served); err != nil {
		t.Error(err)
	}
}

// mirror makes the stream.
func (c *streamFaultCase) mirror(t *testing.T, client *amqpx.Client) error {
	t.Helper()
	var opts []amqpx.CallOption
	if c.patient {
		opts = append(opts, amqpx.WaitForServer())
	}
	if c.timeout > 0 {
		opts = append(opts, amqpx.CallTimeout(c.timeout))
	}
	s, err := client.Open(t.Context(), "mirror", opts...)
	if err != nil {
		return err
	}
	defer s.Close()
	for _, item := range []string{"a", "b", "c"} {
		_ = s.Send([]byte(item)) // Recv returns the error
		got, err := s.Recv()
		if err != nil {
			return err
		}
		if string(got) != item {
			t.Errorf("item %q, want %q", got, item)
		}
	}
	_ = s.CloseSend()
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// TestGapOfItems: a later item shows that a message was lost, or overtaken.
func TestGapOfItems(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]Fault{"lose": Lose(), "delay": Delay(time.Second)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				broker := NewBroker()
				server, err := amqpx.NewServer(URL, broker.Option())
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				if err := server.HandleStream("ticks", func(_ context.Context, s *amqpx.ServerStream) error {
					for {
						<-time.After(10 * time.Millisecond)
						if err := s.Send([]byte("tick")); err != nil {
							ended <- err
							return err
						}
					}
				}); err != nil {
					t.Fatal(err)
				}
				served := make(chan error, 1)
				go func() { served <- server.Serve(context.Background()) }() // ends with Shutdown
				client, err := amqpx.NewClient(URL, broker.Option())
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(server.WaitReady(t.Context()), client.WaitReady(t.Context())); err != nil {
					t.Fatal(err)
				}
				broker.FailFrames(amqpx.DefaultQueue, Pass(), Pass(), fault)
				n := 0
				for _, err = range client.Stream(t.Context(), "ticks", nil) {
					n++
				}
				if amqpx.CodeOf(err) != amqpx.CodeDataLoss || n < 2 || amqpx.CodeOf(<-ended) != amqpx.CodeDataLoss {
					t.Errorf("%d items, error %v", n, err)
				}
				if err := errors.Join(client.Shutdown(t.Context()), server.Shutdown(t.Context()), <-served); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
