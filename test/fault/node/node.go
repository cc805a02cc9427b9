package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/fault/internal/report"
)

// node is the common part of both modes.
type node struct {
	options

	ledger  *ledger.Writer
	signals chan os.Signal
	out     io.Writer
	mu      sync.Mutex // of out
	// executions numbers the executions of the requests with shared keys.
	executions atomic.Uint64
}

// say prints a line for the suite.
func (n *node) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = fmt.Fprintf(n.out, format+"\n", args...)
}

// record writes to the ledger, with the present time unless the entry has one. An incomplete ledger
// proves nothing, so a failure ends the process.
func (n *node) record(e ledger.Entry) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if err := n.ledger.Write(e); err != nil {
		n.say("%v", err)
		os.Exit(1)
	}
}

// follow records the connection states until done is closed.
func (n *node) follow(states <-chan amqpx.Status, done <-chan struct{}) {
	var last amqpx.State
	for first := true; ; first = false {
		select {
		case <-done:
			return
		case s, ok := <-states:
			if !ok {
				return
			}
			if first || s.State != last {
				n.record(ledger.Entry{Kind: ledger.Status, Name: s.State.String()})
			}
			last = s.State
		}
	}
}

// measure returns the process's resource usage after a garbage collection.
func measure() report.Held {
	runtime.GC()
	runtime.GC() // the second collection also frees the contents of pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return report.Held{Goroutines: runtime.NumGoroutine(), HeapBytes: m.HeapAlloc, RSSBytes: rss()}
}

// settle measures until the number of goroutines is at most before, or until 150 attempts are
// used up. A probe of the library may be running at any single moment, but not at all of them,
// and a goroutine that could not delete an abandoned reply queue tries again after 10 s.
func settle(before int) report.Held {
	const attempts, pause = 150, 100 * time.Millisecond
	tick := time.NewTicker(pause)
	defer tick.Stop()
	held := measure()
	for range attempts {
		if held.Goroutines <= before {
			break
		}
		<-tick.C
		held = measure()
	}
	return held
}

// rss returns the resident memory, or 0 if the system does not report it.
func rss() uint64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// tellGrowth writes the stacks of all goroutines to the log if their number has grown.
func tellGrowth(before, after report.Held) {
	if after.Goroutines > before.Goroutines {
		const room = 1 << 20
		stacks := make([]byte, room)
		_, _ = os.Stderr.Write(stacks[:runtime.Stack(stacks, true)])
	}
}

// summarize prints the summary, and the stacks if goroutines are left.
func (n *node) summarize(s report.Summary) error {
	tellGrowth(s.Fresh, s.Closed)
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	n.say("summary %s", line)
	return nil
}
