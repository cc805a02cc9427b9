package scaling

import (
	"fmt"
	"strings"
)

// Table renders the medians of all points.
func (m Measurement) Table() string {
	var b strings.Builder
	b.WriteString("\n")
	rows := [][]string{{"load", "calls/s", "p50 ms", "calls in a message", "CPU µs/call client + server + broker"}}
	for _, p := range m.Points {
		if r := p.Medians(); len(p.Runs) > 0 {
			rows = append(rows, []string{p.Load.String(), grouped(r.Rate), fmt.Sprintf("%.2f", r.P50), fmt.Sprintf("%.1f", r.Size), costs(r)})
		}
	}
	writeTable(&b, rows)
	return b.String()
}

// String names a load.
func (l Load) String() string {
	kind := "single"
	if l.Batch {
		kind = "batch"
	}
	text := fmt.Sprintf("%s, %s, %s", kind, count(l.Nodes, "node"), l.Place)
	if l.Quorum {
		text += ", quorum"
	}
	if l.Shards > 1 {
		text += ", " + count(l.Shards, "shard")
	}
	text += fmt.Sprintf(", %s, %s", count(l.Servers, "server"), count(l.Clients, "client"))
	if l.Handler > 0 {
		text += fmt.Sprintf(", handler %.0f ms", l.Handler/1e3)
	}
	if l.Rate > 0 {
		return text + fmt.Sprintf(", %s calls/s", grouped(l.Rate))
	}
	return text + ", " + count(l.Callers, "caller")
}

func costs(r Run) string {
	if r.Client+r.Server+r.Broker < 30 {
		return fmt.Sprintf("%.1f + %.1f + %.1f", r.Client, r.Server, r.Broker)
	}
	return fmt.Sprintf("%.0f + %.0f + %.0f", r.Client, r.Server, r.Broker)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(float64(n)) + " " + noun + "s"
}

// grouped formats a whole number with commas between the thousands.
func grouped(x float64) string {
	digits := fmt.Sprintf("%.0f", x)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// writeTable writes a Markdown table whose first row has the heads. The first column is
// left-aligned, the others right-aligned.
func writeTable(b *strings.Builder, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "| --- |%s\n", strings.Repeat(" ---: |", len(row)-1))
		}
	}
}
