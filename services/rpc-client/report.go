package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// report is what report.json holds. Calls equals OK plus the sum of Errors plus
// Lost, always.
type report struct {
	// Calls counts the calls made; fewer than planned only when Interrupted.
	Calls int64 `json:"calls"`
	// OK counts the expected answers.
	OK int64 `json:"ok"`
	// Errors counts the other settled calls by code; wrong answers are among them
	// as "mismatched".
	Errors map[string]int64 `json:"errors"`
	// Lost counts the calls that never settled.
	Lost int64 `json:"lost"`
	// Duplicates counts second answers to a call; they were dropped.
	Duplicates uint64 `json:"duplicates"`
	// Mismatched counts the answers that were not the expected one.
	Mismatched int64 `json:"mismatched"`
	// Reconnects counts the links to the broker after the first.
	Reconnects uint64 `json:"reconnects"`
	// Seconds is the time from the first call to the end of the last.
	Seconds float64 `json:"seconds"`
	// CallsPerSecond is Calls divided by Seconds.
	CallsPerSecond float64 `json:"calls_per_second"`
	// LatencyMS is over the expected answers, seen by the caller.
	LatencyMS latency `json:"latency_ms"`
	// Interrupted says that a signal ended the run before the last planned call.
	Interrupted bool `json:"interrupted"`
}

// latency holds milliseconds, exact to three digits; all are 0 without an answer.
type latency struct {
	Min  float64 `json:"min"`
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

func newReport(t *tally, planned int, stats amqpx.ClientStats) *report {
	r := &report{
		Calls:       t.calls,
		OK:          t.ok,
		Errors:      t.errors,
		Lost:        t.calls - t.settled(),
		Duplicates:  stats.Duplicates,
		Mismatched:  t.errors[keyMismatched],
		Reconnects:  stats.Reconnects,
		Seconds:     round(t.elapsed.Seconds(), 6),
		Interrupted: t.interrupted && t.calls < int64(planned),
	}
	if t.elapsed > 0 {
		r.CallsPerSecond = round(float64(t.calls)/t.elapsed.Seconds(), 1)
	}
	if t.ok > 0 {
		r.LatencyMS = newLatency(t)
	}
	return r
}

func newLatency(t *tally) latency {
	at := func(percent float64) float64 {
		return milliseconds(time.Duration(t.latency.ValueAtPercentile(percent)))
	}
	return latency{
		Min:  milliseconds(time.Duration(t.latency.Min())),
		Mean: milliseconds(time.Duration(t.latency.Mean())),
		P50:  at(50),
		P90:  at(90),
		P99:  at(99),
		P999: at(99.9),
		Max:  milliseconds(time.Duration(t.latency.Max())),
	}
}

// err returns nil if every call got the expected answer, so far as calls were made.
func (r *report) err() error {
	if bad := r.Calls - r.OK; bad > 0 {
		return fmt.Errorf("%d of %d calls did not get the expected answer", bad, r.Calls)
	}
	return nil
}

// write puts the report into dir, in one step: whoever reads it sees all of it.
func (r *report) write(dir string) (path string, err error) {
	path = filepath.Join(dir, "report.json")
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode the report: %w", err)
	}
	temp, err := os.CreateTemp(dir, ".report-*")
	if err != nil {
		return "", fmt.Errorf("write the report: %w", err)
	}
	_, err = temp.Write(append(content, '\n'))
	const readable = 0o644
	err = errors.Join(err, temp.Chmod(readable), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("write the report: %w", err), os.Remove(temp.Name()))
	}
	return path, nil
}

// prepareDir makes sure that a report can be written to dir, creating it if needed.
func prepareDir(dir string) error {
	const enterable = 0o755
	if err := os.MkdirAll(dir, enterable); err != nil {
		return err
	}
	probe, err := os.CreateTemp(dir, ".report-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

func milliseconds(d time.Duration) float64 { return round(float64(d)/float64(time.Millisecond), 3) }

func round(x float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(x*scale) / scale
}
