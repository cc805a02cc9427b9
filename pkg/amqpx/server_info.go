package amqpx

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// ServerInfo is one server's description of itself ([Client.Servers]). Its JSON is the response to
// the queries of the control plane. The response to "ping" is without Methods and Stats, the
// response to "info" without Stats and the methods' counts.
type ServerInfo struct {
	// ID is new for each [Server]; Name and Version are set with [WithName] and [WithVersion].
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// Host and PID identify the process.
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Queue is the request queue.
	Queue string `json:"queue"`
	// State is the state of the connection ([State.String]): ready, blocked or draining.
	State string `json:"state"`
	// Started is a time of the server's clock; UptimeSeconds does not depend on the clocks.
	Started       time.Time `json:"started"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	// RoundTripMS is the time until the response of the server, in milliseconds. The client
	// sets this field.
	RoundTripMS float64 `json:"round_trip_ms,omitempty"`
	// Workers, Prefetch and Batch are settings of the server.
	Workers  int  `json:"workers,omitempty"`
	Prefetch int  `json:"prefetch,omitempty"`
	Batch    bool `json:"batch,omitempty"`
	// Methods are the methods of the server, sorted by name.
	Methods []MethodInfo `json:"methods,omitempty"`
	// Stats are the counters of the server.
	Stats *ServerStats `json:"stats,omitempty"`
}

// MethodInfo describes one method of a server.
type MethodInfo struct {
	Name       string `json:"name"`
	AtMostOnce bool   `json:"at_most_once,omitempty"`
	// OK and Failed count the handlers that returned a result or an error.
	OK     uint64 `json:"ok"`
	Failed uint64 `json:"failed"`
	// LatencyMS summarises the run times of the handlers since the server was created, in
	// milliseconds.
	LatencyMS Latency `json:"latency_ms"`
}

// Latency summarises times in milliseconds, with a precision of two significant digits.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

// instance is the constant part of a server's description.
type instance struct {
	id      string
	host    string
	started time.Time
}

func newInstance() instance {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return instance{id: newID(), host: host, started: time.Now()}
}

// describe returns the response to a query about the server.
func (s *Server) describe(question string) ([]byte, error) {
	in := ServerInfo{
		ID: s.self.id, Name: s.cfg.name, Version: s.cfg.version, Host: s.self.host, PID: os.Getpid(),
		Queue: s.cfg.queue.Name, State: s.Status().State.String(),
		Started: s.self.started.UTC(), UptimeSeconds: time.Since(s.self.started).Seconds(),
	}
	if question == wire.ControlPing {
		return json.Marshal(in)
	}
	in.Workers, in.Prefetch, in.Batch = s.cfg.workers, s.cfg.prefetch, s.cfg.batch == BatchAuto
	for _, name := range slices.Sorted(maps.Keys(s.methods)) {
		m := MethodInfo{Name: name, AtMostOnce: s.methods[name].atMostOnce}
		if question == wire.ControlStats {
			s.methods[name].times.sumUp(&m)
		}
		in.Methods = append(in.Methods, m)
	}
	if question == wire.ControlStats {
		st := s.Stats()
		in.Stats = &st
	}
	return json.Marshal(in)
}

// handlerTimes counts the ended handlers of a method, and their run times. The zero value is
// ready to use; safe for concurrent use.
type handlerTimes struct {
	ok, failed atomic.Uint64

	mu   sync.Mutex
	took *hdrhistogram.Histogram // in µs; nil before the first handler
}

// slowestHandler is the longest run time in the histogram; longer times count as this value.
const slowestHandler = time.Hour

// ended counts a handler that ended.
func (h *handlerTimes) ended(ok bool, took time.Duration) {
	if ok {
		h.ok.Add(1)
	} else {
		h.failed.Add(1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.took == nil {
		const digits = 2
		h.took = hdrhistogram.New(1, slowestHandler.Microseconds(), digits)
	}
	_ = h.took.RecordValue(min(took.Microseconds(), slowestHandler.Microseconds())) // within its bounds
}

// sumUp sets the counts and latencies of m.
func (h *handlerTimes) sumUp(m *MethodInfo) {
	m.OK, m.Failed = h.ok.Load(), h.failed.Load()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.took == nil {
		return
	}
	const perMS = 1000
	m.LatencyMS = Latency{
		Mean: h.took.Mean() / perMS, P50: float64(h.took.ValueAtPercentile(50)) / perMS,
		P99: float64(h.took.ValueAtPercentile(99)) / perMS, Max: float64(h.took.Max()) / perMS,
	}
}
