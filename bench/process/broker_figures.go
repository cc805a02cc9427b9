package process

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// BrokerFigures are figures that the broker reports of itself.
type BrokerFigures struct {
	// Messages counts the messages that clients and servers have published since the broker's
	// start.
	Messages float64
	// Declared counts the queues that were created since the broker's start.
	Declared              float64
	Connections, Channels float64
	// Queues counts the queues that exist.
	Queues float64
	// Memory is the size of Erlang's processes and tables, in bytes. It is not all memory: the
	// buffers of sockets, which are several megabytes on the loopback interface, are mostly not
	// resident.
	Memory float64
}

// figuresTimeout bounds a query for the broker's figures.
const figuresTimeout = 10 * time.Second

// ReadBroker reads the figures from the URL of the broker's plugin rabbitmq_prometheus.
func ReadBroker(ctx context.Context, url string) (BrokerFigures, error) {
	ctx, cancel := context.WithTimeout(ctx, figuresTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/metrics", http.NoBody)
	if err != nil {
		return BrokerFigures{}, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return BrokerFigures{}, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return BrokerFigures{}, fmt.Errorf("%s: %s", url, response.Status)
	}
	return parseBroker(response.Body)
}

// parseBroker adds up the samples of each figure's metrics, in Prometheus's text format. A metric
// has a name, or a name with labels for a single sample.
func parseBroker(text io.Reader) (f BrokerFigures, err error) {
	figures := map[string]*float64{
		"rabbitmq_global_messages_received_total":          &f.Messages,
		"rabbitmq_connections":                             &f.Connections,
		"rabbitmq_channels":                                &f.Channels,
		"rabbitmq_queues_created_total":                    &f.Declared,
		"rabbitmq_queues":                                  &f.Queues,
		`erlang_vm_memory_bytes_total{kind="processes"}`:   &f.Memory,
		`erlang_vm_memory_system_bytes_total{usage="ets"}`: &f.Memory,
	}
	found := make(map[string]bool)
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		series, value := lines.Text(), ""
		if at := strings.LastIndex(series, " "); at > 0 {
			series, value = series[:at], series[at+1:]
		}
		name := series
		if figures[name] == nil {
			name, _, _ = strings.Cut(series, "{")
		}
		figure := figures[name]
		if figure == nil {
			continue
		}
		x, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return f, fmt.Errorf("%s: %w", name, err)
		}
		*figure += x
		found[name] = true
	}
	if err := lines.Err(); err != nil {
		return f, err
	}
	for name := range figures {
		if !found[name] {
			return f, fmt.Errorf("the broker has no metric %s", name)
		}
	}
	return f, nil
}
