package contender

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Load is what a driver is asked for: a closed loop, or, with a rate, an open loop.
type Load struct {
	Callers  int   // of a closed loop
	Rate     int64 // calls per second
	InFlight int   // most calls of an open loop at once
	Duration time.Duration
	Calls    int // the most
}

// Figures are the results of a load.
type Figures struct {
	Calls               int64
	Elapsed             time.Duration
	P50, P99, P999, Max time.Duration
	NotBegun            int64 // calls of an open loop that were due and did not start
}

// Driver is a caller that makes the calls of a loop itself, and no single calls.
type Driver interface {
	Caller
	// Drive makes the calls, checks each response, and returns the figures.
	Drive(ctx context.Context, l Load) (Figures, error)
}

// Meter is a contender whose processes run another program in their place.
type Meter interface {
	// Used returns the processor time of the programs that have ended, and the process ID of
	// the running program; 0: none.
	Used() (ended time.Duration, running int)
}

// Dial implements native. There is nothing to dial before a turn: each turn is a new client.
func (p *pair) Dial(_ context.Context, env Environment) (Caller, error) {
	return &pairCaller{pair: p, env: env}, nil
}

type pairCaller struct {
	pair *pair
	env  Environment
}

// Call implements caller.
func (*pairCaller) Call(context.Context, string, []byte) ([]byte, error) {
	return nil, errors.New("rpc-client makes the calls of a loop, and no single calls")
}

// Close implements caller.
func (*pairCaller) Close(context.Context) error { return nil }

// Drive implements driver with a run of rpc-client.
func (c *pairCaller) Drive(ctx context.Context, l Load) (_ Figures, err error) {
	dir, err := os.MkdirTemp("", "bench-report-")
	if err != nil {
		return Figures{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cmd := c.pair.command(ctx, c.env, "rpc-client", l.settings(dir)...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := c.pair.start(cmd); err != nil {
		return Figures{}, err
	}
	if err := c.pair.wait(cmd); err != nil {
		return Figures{}, fmt.Errorf("rpc-client: %w: %s", err, readLog(&log, nil))
	}
	content, err := os.ReadFile(filepath.Join(dir, "report.json")) //nolint:gosec // of the directory made above.
	if err != nil {
		return Figures{}, err
	}
	return figuresOf(content)
}

// settings returns the client's settings for the load.
func (l Load) settings(dir string) []string {
	list := []string{
		"RPC_METHOD=" + MethodQuick, "RPC_BODY=" + RequestBody, "RPC_EXPECT=" + ResponseBody,
		"RPC_DURATION=" + l.Duration.String(), "RPC_CALLS=" + strconv.Itoa(l.Calls), "RPC_REPORT_DIR=" + dir,
	}
	if l.Rate > 0 {
		return append(list, fmt.Sprintf("RPC_RATE=%d", l.Rate), fmt.Sprintf("RPC_CONCURRENCY=%d", l.InFlight))
	}
	return append(list, fmt.Sprintf("RPC_CONCURRENCY=%d", l.Callers))
}

// figuresOf reads the client's report. The report of a run with a failed call has no figures.
func figuresOf(content []byte) (Figures, error) {
	var r struct {
		Passed    bool
		Calls     int64
		OK        int64
		Seconds   float64
		LatencyMS struct {
			P50, P99, P999, Max float64
		} `json:"latency_ms"`
		Rate *struct {
			NotBegun int64 `json:"not_begun"`
		}
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return Figures{}, fmt.Errorf("the client's report: %w", err)
	}
	if !r.Passed || r.OK != r.Calls || r.Calls == 0 || r.Seconds <= 0 {
		return Figures{}, fmt.Errorf("%d of %d calls of rpc-client in %g s got the expected response", r.OK, r.Calls, r.Seconds)
	}
	ms := func(x float64) time.Duration { return time.Duration(x * float64(time.Millisecond)) }
	f := Figures{
		Calls: r.Calls, Elapsed: time.Duration(r.Seconds * float64(time.Second)),
		P50: ms(r.LatencyMS.P50), P99: ms(r.LatencyMS.P99), P999: ms(r.LatencyMS.P999), Max: ms(r.LatencyMS.Max),
	}
	if r.Rate != nil {
		f.NotBegun = r.Rate.NotBegun
	}
	return f, nil
}
