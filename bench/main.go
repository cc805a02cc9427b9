// Bench measures ways to make remote calls side by side in one run, and prints
// markdown tables; with -out it keeps them, with plots, in a directory.
//
// Every contender runs as processes of its own, one that calls and one or more that
// answer, as it would in production: no heap, scheduler or poller is shared between
// the sides or between contenders. This process only conducts. In each round the
// contenders take turns, A B C A B C …, after a warm-up; figures are medians over the
// rounds, and a ratio compares two contenders within the same round.
//
// An experiment (-experiment) is a lineup of contenders and a row of loads: closed
// loops of callers, open loops of a constant rate, bodies of several sizes, several
// server processes, slow calls among fast ones, and very many calls at once.
//
// Every answer is checked. Exit code: 0 for a complete run, 1 when anything went
// wrong, 2 for bad arguments.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) > 1 && os.Args[1] == childArg {
		err = serveChild(ctx, os.Stdin, os.Stdout)
	} else {
		err = conduct(ctx, os.Args[1:])
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
