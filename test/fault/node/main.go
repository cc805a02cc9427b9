// Command node is a process of the fault suite: a server or a client. It uses the library like
// any program, and keeps the ledger.
//
// Its lines on stdout are events for the suite: "ready", "ok N M S" for N successful calls, M calls
// sent in batches and S streams that ended without an error, and at the end "summary" with the
// resource usage. SIGTERM ends the process gracefully, a second SIGTERM at once.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// streamKeepAlive is the silence after which a peer of streams is asked for a sign of life: shorter
// than a fault.
const streamKeepAlive = 500 * time.Millisecond

// options holds the command line.
type options struct {
	name, url, queue, kind, ledger string
	batch                          string
	persistent                     bool
	heartbeat, drain, dial         time.Duration

	// Server only.
	store string
	lease time.Duration

	// Client only.
	workers, padding     int
	streamers, shapers   int
	keyed                int
	seed                 uint64
	mix                  string
	rate                 float64
	deadline, impatience time.Duration
	longest              time.Duration
	direct               bool
	replies              string
}

func parse(args []string) (mode string, o options, err error) {
	if len(args) == 0 {
		return "", o, fmt.Errorf("usage: node server|client FLAGS")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&o.name, "name", "node", "name of the process in ledgers and at the broker")
	flags.StringVar(&o.url, "url", "", "AMQP URL")
	flags.StringVar(&o.queue, "queue", "fault", "request queue")
	flags.StringVar(&o.kind, "kind", string(amqpx.QueueClassic), "type of the request queue")
	flags.StringVar(&o.batch, "batch", string(amqpx.BatchAuto), "whether calls may travel together: auto or off")
	flags.BoolVar(&o.persistent, "persistent", false, "messages survive the broker's restart")
	flags.StringVar(&o.ledger, "ledger", "", "file to append to")
	flags.DurationVar(&o.heartbeat, "heartbeat", amqpx.DefaultHeartbeat, "heartbeat interval")
	flags.DurationVar(&o.drain, "drain", amqpx.DefaultDrainTimeout, "bound of a graceful stop")
	flags.DurationVar(&o.dial, "dial", amqpx.DefaultDialTimeout, "bound of one attempt to connect")
	flags.IntVar(&o.workers, "workers", 0, "calls or handlers at once; 0 is 32 or the library's default")
	flags.IntVar(&o.padding, "padding", 0, "bytes added to every body")
	flags.IntVar(&o.streamers, "streams", 0, "streams at once")
	flags.IntVar(&o.shapers, "shapes", 0, "callers of the other shapes; the first makes calls to all servers")
	flags.StringVar(&o.store, "store", "", "address of the Redis that remembers idempotency keys for all servers")
	flags.DurationVar(&o.lease, "lease", amqpx.DefaultDedupLease, "how long a claim in the store outlives its server")
	flags.IntVar(&o.keyed, "keyed", 0, "callers with idempotency keys that the callers of all clients share; the first makes calls that take longer than the lease")
	flags.Uint64Var(&o.seed, "seed", 1, "what the mix of calls is drawn from")
	flags.StringVar(&o.mix, "mix", "echo:1", "methods and their weights")
	flags.Float64Var(&o.rate, "rate", 0, "calls per second, 0 for as fast as answers come")
	flags.DurationVar(&o.deadline, "deadline", amqpx.DefaultTimeout, "deadline of idempotent calls")
	flags.DurationVar(&o.impatience, "impatience", amqpx.DefaultTimeout, "deadline of the others")
	flags.DurationVar(&o.longest, "longest", 50*time.Millisecond, "the longest that a slow call takes")
	flags.BoolVar(&o.direct, "direct", false, "use direct reply-to")
	flags.StringVar(&o.replies, "replies", string(amqpx.QueueClassic), "type of the reply queue")
	return args[0], o, flags.Parse(args[1:])
}

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	mode, o, err := parse(args)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	w, err := ledger.Open(o.ledger, o.name)
	if err != nil {
		return err
	}
	logger, err := zap.NewProduction()
	if err != nil {
		return err
	}
	n := &node{options: o, ledger: w, signals: signals, out: os.Stdout}
	// A session away from its home node has a goroutine more, and a leak would hide behind it. The
	// runs are shorter than the default time of the return, which TestClusterReturnHome tests.
	shared := []amqpx.Option{
		amqpx.WithReturnHome(0), amqpx.WithStreamKeepAlive(streamKeepAlive),
		amqpx.WithQueue(amqpx.Queue{Name: o.queue, Type: amqpx.QueueType(o.kind)}),
		amqpx.WithName(o.name), amqpx.WithHeartbeat(o.heartbeat), amqpx.WithPersistent(o.persistent),
		amqpx.WithDialTimeout(o.dial), amqpx.WithBatch(amqpx.BatchMode(o.batch)), amqpx.WithLogger(logger),
	}
	switch mode {
	case "server":
		return n.serve(ctx, shared)
	case "client":
		return n.call(ctx, shared)
	default:
		return fmt.Errorf("mode %q: want server or client", mode)
	}
}
