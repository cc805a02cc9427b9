package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/fault/internal/report"
)

const (
	defaultCallers = 32
	// closePatience bounds the closing of the client.
	closePatience = 10 * time.Second
	// progressEvery is the interval of "ok N M".
	progressEvery = 100 * time.Millisecond
	// afterError is a caller's pause after an error.
	afterError = 20 * time.Millisecond
)

// caller makes the calls of a client.
type caller struct {
	*node

	client  *amqpx.Client
	mix     []string // each method as often as its weight
	serial  atomic.Uint64
	ok      atomic.Uint64
	streams atomic.Uint64 // whole ones
}

// call runs a client with callers in closed loops until SIGTERM.
func (n *node) call(ctx context.Context, shared []amqpx.Option) error {
	mix, err := parseMix(n.mix)
	if err != nil {
		return err
	}
	s := report.Summary{Node: n.name, Fresh: measure()}
	opts := []amqpx.ClientOption{amqpx.WithCallOptions(amqpx.WaitForServer())}
	for _, o := range shared {
		opts = append(opts, o)
	}
	if n.direct {
		opts = append(opts, amqpx.WithReplyMode(amqpx.ReplyDirect))
	} else {
		opts = append(opts, amqpx.WithReplyQueueType(amqpx.QueueType(n.replies)))
	}
	client, err := amqpx.NewClient(n.url, opts...)
	if err != nil {
		return err
	}
	over := make(chan struct{})
	watching, unwatch := context.WithCancel(ctx)
	states := client.Watch(watching)
	var beside sync.WaitGroup
	beside.Go(func() { n.follow(states, over) }) // until over is closed, below
	err = client.WaitReady(ctx)
	c := &caller{node: n, client: client, mix: mix}
	err = errors.Join(err, c.firstStream(ctx))
	ready := measure()
	n.say("ready")

	err = errors.Join(err, c.load(ctx))
	idle := settle(ready.Goroutines)
	tellGrowth(ready, idle)
	s.Ready, s.Idle = &ready, &idle

	ctx, cancel := context.WithTimeout(ctx, closePatience)
	defer cancel()
	err = errors.Join(err, client.Close(ctx))
	s.Counts = client.Stats()
	close(over)
	beside.Wait()
	unwatch()
	s.Closed = settle(s.Fresh.Goroutines)
	return errors.Join(err, n.summarize(s))
}

// load runs the callers until SIGTERM. A second SIGTERM closes the client during their calls.
func (c *caller) load(ctx context.Context) error {
	workers := c.workers
	if workers == 0 {
		workers = defaultCallers
	}
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for i := range workers {
		random := rand.New(rand.NewPCG(c.seed, uint64(i)))
		callers.Go(func() {
			for c.one(ctx, random) && c.rest(stop, workers) {
				continue
			}
		})
	}
	for i := range c.shapers {
		random := rand.New(rand.NewPCG(c.seed, uint64(workers+c.streamers+i)))
		callers.Go(func() { c.shapes(ctx, stop, random, i == 0) })
	}
	for i := range c.keyed {
		random := rand.New(rand.NewPCG(c.seed, uint64(workers+c.streamers+c.shapers+i)))
		callers.Go(func() { c.shareKeys(ctx, stop, random, i == 0) })
	}
	for i := range c.streamers {
		random := rand.New(rand.NewPCG(c.seed, uint64(workers+i)))
		callers.Go(func() { c.stream(ctx, stop, random) })
	}
	over := make(chan struct{})
	go func() { // ends with the callers
		callers.Wait()
		close(over)
	}()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var err error
	stopping := false
	for {
		select {
		case <-tick.C:
			c.progress()
		case <-c.signals:
			if stopping {
				closing, cancel := context.WithTimeout(ctx, closePatience)
				err = errors.Join(err, c.client.Close(closing))
				cancel()
				continue
			}
			stopping = true
			close(stop)
		case <-over:
			c.progress()
			return err
		}
	}
}

// progress prints the number of successful calls, of calls sent in a batch, and of whole streams.
func (c *caller) progress() {
	c.say("ok %d %d %d", c.ok.Load(), c.client.Stats().Batched, c.streams.Load())
}

// rest waits for the caller's next turn. The result is false if the load was stopped.
func (c *caller) rest(stop <-chan struct{}, workers int) bool {
	if c.rate == 0 {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	return wait(stop, time.Duration(float64(workers)/c.rate*float64(time.Second)))
}

// wait waits for d. The result is false if stop was closed before.
func wait(stop <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-stop:
		return false
	case <-timer.C:
		return true
	}
}

// drawn is a call that is about to be made.
type drawn struct {
	id, method string
	key        string // "": the caller shares no key
	body       []byte
	idempotent bool
	deadline   time.Time
	info       amqpx.CallInfo
	opts       []amqpx.CallOption
}

// draw draws a call of a method.
func (c *caller) draw(method string, idempotent bool, random *rand.Rand) *drawn {
	d := &drawn{id: c.name + "-" + strconv.FormatUint(c.serial.Add(1), 36), method: method, idempotent: idempotent}
	takes := time.Duration(random.Int64N(int64(c.longest))) // a slow one
	d.body = fmt.Appendf(nil, "%s %v %s", d.id, takes, strings.Repeat("x", c.padding))
	patience := c.impatience
	d.opts = []amqpx.CallOption{amqpx.WithCallInfo(&d.info)}
	if idempotent {
		patience = c.deadline
		d.opts = append(d.opts, amqpx.Idempotent())
	}
	d.deadline = time.Now().Add(patience)
	return d
}

// make makes a drawn call of a shape, with its entries in the ledger. call returns the result, and
// may add to the entry of the end.
func (c *caller) make(ctx context.Context, d *drawn, shape string, call func(ctx context.Context, e *ledger.Entry) ([]byte, error)) error {
	c.record(ledger.Entry{
		Kind: ledger.Start, ID: d.id, Method: d.method, Shape: shape, Idempotent: d.idempotent,
		Deadline: d.deadline, Sum: ledger.Sum(d.body), Key: d.key,
	})
	callCtx, cancel := context.WithDeadline(ctx, d.deadline)
	defer cancel()
	e := ledger.Entry{Kind: ledger.End, ID: d.id, Code: ledger.OK}
	response, err := call(callCtx, &e)
	e.Outcome, e.Attempts = amqpx.OutcomeOf(err).String(), d.info.Attempts
	var coded *amqpx.Error
	switch {
	case err == nil:
		e.Sum = ledger.Sum(response)
	case errors.As(err, &coded) && coded.Remote():
		e.Sum = ledger.Sum([]byte(coded.Message()))
	}
	if err != nil {
		e.Code, e.Text = string(amqpx.CodeOf(err)), err.Error()
	}
	c.record(e)
	return err
}

// goesOn waits a while after an error, and reports whether the caller should continue.
func goesOn(ctx context.Context, err error) bool {
	var coded *amqpx.Error
	switch {
	case err == nil:
		return true
	case errors.Is(err, amqpx.ErrClosed):
		return false
	default:
		return errors.As(err, &coded) && coded.Remote() || wait(ctx.Done(), afterError)
	}
}

// one makes a call and reports whether the caller should continue.
func (c *caller) one(ctx context.Context, random *rand.Rand) bool {
	d := c.draw(c.mix[random.IntN(len(c.mix))], random.IntN(2) == 0, random)
	err := c.make(ctx, d, "", func(ctx context.Context, _ *ledger.Entry) ([]byte, error) {
		return c.client.Call(ctx, d.method, d.body, d.opts...)
	})
	if err == nil {
		c.ok.Add(1)
	}
	return goesOn(ctx, err)
}

// parseMix reads "method:weight,…".
func parseMix(text string) ([]string, error) {
	var mix []string
	for part := range strings.SplitSeq(text, ",") {
		method, weight, _ := strings.Cut(part, ":")
		n, err := strconv.Atoi(weight)
		if err != nil || method == "" || n < 1 {
			return nil, fmt.Errorf("mix %q: want method:weight", part)
		}
		for range n {
			mix = append(mix, method)
		}
	}
	return mix, nil
}
