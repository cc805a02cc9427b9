package ledger

import (
	"encoding/json"
	"fmt"
	"hash/crc64"
	"os"
	"strconv"
)

// Writer appends entries to a file. Concurrent use is safe, also by several processes on the
// same file.
type Writer struct {
	node string
	file *os.File
}

// Open opens the file of a process for appending.
func Open(path, node string) (*Writer, error) {
	const private = 0o600
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, private)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return &Writer{node: node, file: f}, nil
}

// Write appends an entry; the entry is in the file when Write returns. Without a Node the
// entry gets the writer's.
func (w *Writer) Write(e Entry) error {
	if e.Node == "" {
		e.Node = w.node
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	if _, err := w.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}

// Close closes the file.
func (w *Writer) Close() error { return w.file.Close() }

// Sum returns the checksum used in entries in place of a body.
func Sum(body []byte) string {
	return strconv.FormatUint(crc64.Checksum(body, crc64.MakeTable(crc64.ECMA)), 36)
}
