package main

import (
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// screen lets log lines and a progress bar share one terminal: a line first wipes
// the bar, which is drawn again with its next step.
type screen struct {
	// columns is the width to draw in; 0 where nothing can be drawn.
	columns int

	// The lock is held while writing: that is what keeps lines whole.
	mu    sync.Mutex
	w     io.Writer
	drawn bool
}

// openScreen finds out whether w is a terminal that a bar can be drawn on. There
// are no colors, so NO_COLOR is honored as it is.
func openScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		if columns, _, err := term.GetSize(int(file.Fd())); err == nil {
			s.columns = drawable(columns, os.Getenv("TERM"))
		}
	}
	return s
}

// Write writes a log line.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn {
		s.drawn = false
		const wipe = "\r\x1b[K"
		if _, err := io.WriteString(s.w, wipe); err != nil {
			return 0, err
		}
	}
	return s.w.Write(p)
}

// endBar leaves the bar where it is and goes on below it.
func (s *screen) endBar() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn {
		s.drawn = false
		_, _ = io.WriteString(s.w, "\n")
	}
}

// barWriter is the screen as the bar sees it.
type barWriter struct{ s *screen }

func (b barWriter) Write(p []byte) (int, error) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.s.drawn = true
	return b.s.w.Write(p)
}
