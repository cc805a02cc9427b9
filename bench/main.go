// Bench measures several ways to make remote calls side by side in one run, and prints
// Markdown tables. With -out it also writes the tables, with plots, to a directory.
//
// Every contender runs in its own processes, one client and one or more servers, as in
// production: the sides and the contenders share no heap, scheduler or poller. This process
// only coordinates. After a warm-up the contenders take turns, in an order that is drawn for each
// round. Figures are medians over the rounds, and a ratio compares two contenders within the same
// round.
//
// The contenders pair, pair-no-metrics and pair-single are the shipped services, rpc-server and
// rpc-client, with default settings, without metrics, and without batches. The services are
// built from this repository; pair@DIR runs those in a directory. A turn of such a contender is
// a run of a new rpc-client, so its warm-up is part of the figure: -duration should be at least
// 5s. Its calls per second and latencies are those of the client's report.
//
// An experiment (-experiment) is a list of contenders and a series of loads: closed loops of
// callers, open loops of a constant rate, bodies of several sizes, several server processes,
// slow calls among fast calls, and very many concurrent calls.
//
// Every response is checked. Exit code: 0 for a complete run, 1 after any error, 2 for bad
// arguments.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"rabbitmq-rpc/bench/process"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) > 1 && os.Args[1] == process.ChildArg {
		err = process.ServeChild(ctx, os.Stdin, os.Stdout)
	} else {
		err = runExperiments(ctx, os.Args[1:])
	}
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
}
