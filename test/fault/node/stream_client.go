package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/items"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// clientPlan is what a stream of a client is to do.
type clientPlan struct {
	plan

	method string
	// cancelAfter is the number of items after which the client cancels the stream; -1: it does
	// not.
	cancelAfter int
	// rest is the pause of the reader after each restEvery items.
	rest time.Duration
	// timeout is the time until the deadline; 0: there is none.
	timeout time.Duration
}

const (
	// restEvery is the number of items between two pauses of a slow reader.
	restEvery = 256
	// betweenStreams is the pause between two streams.
	betweenStreams = 20 * time.Millisecond
)

// newPlan draws a plan: two in three streams last for seconds, the others are as fast as they can
// be, some with a slow reader, so that their sender runs out of credit.
func (c *caller) newPlan(random *rand.Rand) *clientPlan {
	methods := []string{
		ledger.Source, ledger.Source, ledger.OnceSource, ledger.FailSource,
		ledger.Sink, ledger.Sink, ledger.Mirror, ledger.Mirror,
	}
	p := &clientPlan{method: methods[random.IntN(len(methods))], cancelAfter: -1}
	p.id = "s-" + c.name + "-" + strconv.FormatUint(c.serial.Add(1), 36)
	p.size = 32 + random.IntN(480)
	switch random.IntN(3) {
	case 0:
		p.items = 1 + random.IntN(3000)
		if random.IntN(3) == 0 {
			p.rest = 10 * time.Millisecond
		}
	default:
		p.items = 1 + random.IntN(400)
		p.pace = time.Duration(1+random.IntN(10)) * time.Millisecond
	}
	if random.IntN(2) == 0 {
		p.timeout = 2*time.Second + time.Duration(random.Int64N(int64(c.deadline)))
	}
	if random.IntN(10) == 0 {
		p.cancelAfter = random.IntN(p.items)
	}
	return p
}

// stream opens streams, one after the other, until stop is closed or the client is.
func (c *caller) stream(ctx context.Context, stop <-chan struct{}, random *rand.Rand) {
	for {
		err := c.oneStream(ctx, c.newPlan(random))
		pause := betweenStreams
		if err != nil {
			pause += afterError
		}
		if errors.Is(err, amqpx.ErrClosed) || !wait(stop, pause) {
			return
		}
	}
}

// firstStream makes a stream, after which the client has all that it needs for streams.
func (c *caller) firstStream(ctx context.Context) error {
	if c.streamers == 0 {
		return nil
	}
	p := &clientPlan{method: ledger.Source, cancelAfter: -1}
	p.id, p.items = "s-"+c.name+"-first", 1
	return c.oneStream(ctx, p)
}

// oneStream makes a stream, with its entries in the ledger.
func (c *caller) oneStream(ctx context.Context, p *clientPlan) error {
	e := ledger.Entry{Kind: ledger.StreamStart, ID: p.id, Method: p.method, Items: p.items, Cancels: p.cancelAfter >= 0}
	if p.timeout > 0 {
		e.Deadline = time.Now().Add(p.timeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, e.Deadline)
		defer cancel()
	}
	c.record(e)
	e = ledger.Entry{Kind: ledger.StreamEnd, ID: p.id, Code: ledger.OK, Flow: new(ledger.Flow)}
	heart := newPulse()
	s, err := c.client.Open(ctx, p.method, amqpx.WithHeader(map[string]any{planHeader: p.text()}))
	if err == nil {
		err = p.run(s, e.Flow, heart)
		told(e.Flow, s.Progress())
	}
	heart.tell(e.Flow)
	e.Outcome = amqpx.OutcomeOf(err).String()
	if err != nil {
		e.Code, e.Text = string(amqpx.CodeOf(err)), err.Error()
		if s != nil {
			told(e.Flow, amqpx.ProgressOf(err))
		}
	} else {
		c.streams.Add(1)
	}
	c.record(e)
	return err
}

// run runs the stream to its end.
func (p *clientPlan) run(s *amqpx.ClientStream, f *ledger.Flow, heart *pulse) error {
	over := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() { // ends with its items, or with the stream
		if p.method == ledger.Sink || p.method == ledger.Mirror {
			f.Offered, _ = p.send(items.Up, over, func(item []byte) error {
				defer heart.beat()
				return s.Send(item)
			})
		}
		_ = s.CloseSend()
	})
	err := p.read(s, f, heart)
	close(over)
	sender.Wait()
	return err
}

// read takes the items until the end of the stream.
func (p *clientPlan) read(s *amqpx.ClientStream, f *ledger.Flow, heart *pulse) error {
	got := items.NewSequence(p.id, items.Down)
	defer func() { f.Received, f.Wrong = got.Count, got.Wrong }()
	for {
		if got.Count == p.cancelAfter {
			s.Close()
		}
		item, err := s.Recv()
		heart.beat()
		switch {
		case err == io.EOF: //nolint:errorlint // as documented.
			f.Whole = true
			return nil
		case err != nil:
			return err
		}
		got.Add(item)
		if p.rest > 0 && got.Count%restEvery == 0 {
			wait(nil, p.rest)
			heart.beat()
		}
	}
}
