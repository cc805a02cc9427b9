// Package report formats the results of the fault suite.
package report

import "fmt"

// Held is the resource usage of a process.
type Held struct {
	Goroutines int    `json:"goroutines"`
	HeapBytes  uint64 `json:"heap_bytes"`
	RSSBytes   uint64 `json:"rss_bytes"`
}

// Summary holds the resource usage of a process of the suite: before it created a client or
// server, when the client or server was ready, after the load, and after closing.
type Summary struct {
	Node  string `json:"node"`
	Fresh Held   `json:"fresh"`
	// Ready and Idle are nil for a server, because its load ends only when it is closed.
	Ready  *Held `json:"ready,omitempty"`
	Idle   *Held `json:"idle,omitempty"`
	Closed Held  `json:"closed"`
	// Counts are the library's statistics.
	Counts any `json:"counts"`
}

// heapSlack is the permitted growth of a heap: buffers and maps keep their size after the
// load.
const heapSlack = 4 << 20

// Leaks describes the resources not released by the process.
func (s Summary) Leaks() []string {
	var leaks []string
	if s.Ready != nil && s.Idle != nil && s.Idle.Goroutines > s.Ready.Goroutines {
		leaks = append(leaks, fmt.Sprintf("%s: %d goroutines after the load, %d before",
			s.Node, s.Idle.Goroutines, s.Ready.Goroutines))
	}
	if s.Closed.Goroutines > s.Fresh.Goroutines {
		leaks = append(leaks, fmt.Sprintf("%s: %d goroutines after closing, %d at its start",
			s.Node, s.Closed.Goroutines, s.Fresh.Goroutines))
	}
	if s.Closed.HeapBytes > s.Fresh.HeapBytes+heapSlack {
		leaks = append(leaks, fmt.Sprintf("%s: %d bytes of heap after closing, %d at its start",
			s.Node, s.Closed.HeapBytes, s.Fresh.HeapBytes))
	}
	return leaks
}
