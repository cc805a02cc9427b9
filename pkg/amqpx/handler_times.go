package amqpx

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// handlerTimes sums up how one method's handlers ended. Its zero value is ready; safe for
// concurrent use.
type handlerTimes struct {
	ok, failed atomic.Uint64

	mu   sync.Mutex
	took *hdrhistogram.Histogram // in µs; nil before the first
}

// slowestHandler is the longest time that is told apart.
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

// sumUp fills in what there is to tell.
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
