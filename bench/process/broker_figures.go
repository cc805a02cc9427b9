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
	Messages                      float64
	Connections, Channels, Queues float64
	Memory                        float64 // of the Erlang machine, in bytes
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

// parseBroker adds up the samples of each figure's metric, in Prometheus's text format.
func parseBroker(text io.Reader) (f BrokerFigures, err error) {
	figures := map[string]*float64{
		"rabbitmq_global_messages_received_total": &f.Messages,
		"rabbitmq_connections":                    &f.Connections,
		"rabbitmq_channels":                       &f.Channels,
		"rabbitmq_queues":                         &f.Queues,
		"erlang_vm_memory_bytes_total":            &f.Memory,
	}
	found := make(map[string]bool)
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if !strings.HasPrefix(series, "#") {
			name, labels, _ := strings.Cut(series, "{")
			if at := strings.LastIndex(lines.Text(), "} "); labels != "" && at > 0 {
				value = lines.Text()[at+2:] // the value of a label may contain a space
			}
			if figure := figures[name]; figure != nil {
				x, err := strconv.ParseFloat(value, 64)
				if err != nil {
					return f, fmt.Errorf("%s: %w", name, err)
				}
				*figure += x
				found[name] = true
			}
		}
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
