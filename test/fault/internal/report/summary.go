// Package report is what the fault suite tells of its runs.
package report

import "fmt"

// Held is what a process holds.
type Held struct {
	Goroutines int    `json:"goroutines"`
	HeapBytes  uint64 `json:"heap_bytes"`
	RSSBytes   uint64 `json:"rss_bytes"`
}

// Summary is what a process of the suite held: before it made a client or server,
// when that was ready, when the load was over, and after it was closed.
type Summary struct {
	Node  string `json:"node"`
	Fresh Held   `json:"fresh"`
	// Ready and Idle are nil of a server: its load has no end before it is closed.
	Ready  *Held `json:"ready,omitempty"`
	Idle   *Held `json:"idle,omitempty"`
	Closed Held  `json:"closed"`
	// Counts are the library's own.
	Counts any `json:"counts"`
}

// heapSlack is what a heap may have grown by: buffers and maps keep the size that
// the load gave them.
const heapSlack = 4 << 20

// Leaks says what the process did not give back.
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
