package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

// modeFleet is the RPC_MODE for listing servers.
const modeFleet = "fleet"

// fleetTimeout limits the query to the servers, including the responses.
const fleetTimeout = 10 * time.Second

// errNoServers makes an empty list an error for scripts.
var errNoServers = errors.New("no server responded")

// lister is the part of [amqpx.Client] for listing servers.
type lister interface {
	WaitReady(ctx context.Context) error
	Servers(ctx context.Context) ([]amqpx.ServerInfo, error)
}

// fleet connects, lists the servers of the queue and closes the client.
func fleet(drain, force context.Context, settings *Config, stdout io.Writer, logger *zap.Logger) error {
	c, err := amqpx.NewClient(settings.AMQP.URL.Reveal(), settings.options(logger)...) //nolint:contextcheck // it lives until Close
	if err != nil {
		return lifecycle.ConfigError(err)
	}
	err = listFleet(drain, c, settings.FleetFormat, stdout)
	return errors.Join(err, closeBy(force, c))
}

// listFleet writes the responding servers to w, in the format "table" or "json".
func listFleet(ctx context.Context, c lister, format string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, fleetTimeout)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		return fmt.Errorf("no connection to the broker: %w", err)
	}
	servers, err := c.Servers(ctx)
	switch {
	case errors.Is(err, amqpx.ErrUnroutable):
		servers = nil
	case err != nil:
		return fmt.Errorf("list the servers: %w", err)
	}
	if format == "json" {
		err = writeServersJSON(w, servers)
	} else {
		err = writeServersTable(w, servers)
	}
	if err == nil && len(servers) == 0 {
		return errNoServers
	}
	return err
}

func writeServersJSON(w io.Writer, servers []amqpx.ServerInfo) error {
	if servers == nil {
		servers = []amqpx.ServerInfo{} // a list, and not null
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(servers)
}

// writeServersTable writes one line per server, followed by one line per function of each
// server.
func writeServersTable(w io.Writer, servers []amqpx.ServerInfo) error {
	if len(servers) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) } // Flush returns the error
	row("SERVER", "NAME", "VERSION", "HOST", "PID", "STATE", "SHARDS", "UPTIME", "BUSY", "STUCK", "WAITING", "REQUESTS", "OK", "FAILED", "RECONNECTS", "RTT ms")
	for _, s := range servers {
		st := s.Stats
		if st == nil {
			st = &amqpx.ServerStats{}
		}
		row(short(s.ID), plain(s.Name), plain(s.Version), plain(s.Host), strconv.Itoa(s.PID), plain(s.State), shards(&s), uptime(s.UptimeSeconds),
			fmt.Sprintf("%d/%d", st.Busy, s.Workers), strconv.Itoa(st.Stuck), strconv.Itoa(st.Waiting), count(st.Requests), count(st.OK), count(st.Failed),
			count(st.Reconnects), fmt.Sprintf("%.1f", s.RoundTripMS))
	}
	row()
	row("SERVER", "FUNCTION", "OK", "FAILED", "MEAN ms", "P50 ms", "P99 ms", "MAX ms")
	for _, s := range servers {
		for _, m := range s.Methods {
			row(short(s.ID), plain(m.Name), count(m.OK), count(m.Failed),
				millis(m.LatencyMS.Mean), millis(m.LatencyMS.P50), millis(m.LatencyMS.P99), millis(m.LatencyMS.Max))
		}
	}
	return t.Flush()
}

// short returns a prefix of an id, long enough to distinguish servers.
func short(id string) string {
	const enough = 8
	return plain(id[:min(enough, len(id))])
}

// plain makes text from a server safe to print: any program may respond.
func plain(text string) string {
	const most = 40
	if text == "" {
		return "-"
	}
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// shards returns the number of request queues of a server, and of those beyond it that the server
// consumes too.
func shards(s *amqpx.ServerInfo) string {
	switch {
	case s.Shards == 0: // of an earlier version
		return "1"
	case len(s.Retiring) > 0:
		return fmt.Sprintf("%d+%d", s.Shards, len(s.Retiring))
	default:
		return strconv.Itoa(s.Shards)
	}
}

func uptime(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

func millis(ms float64) string { return strconv.FormatFloat(ms, 'f', 3, 64) }
