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
	// size asks for the width of the terminal; nil where nothing can be drawn.
	size func() (columns int)

	// The lock is held while writing: that is what keeps lines whole.
	mu    sync.Mutex
	w     io.Writer
	drawn bool
}

// openScreen finds out whether w is a terminal that a bar can be drawn on. There
// are no colors, so NO_COLOR is honored as it is.
func openScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) && canMove(os.Getenv("TERM")) {
		s.size = func() int {
			columns, _, err := term.GetSize(int(file.Fd()))
			if err != nil {
				return 0
			}
			return columns
		}
	}
	return s
}

// canMove reports whether a terminal of that kind can go back to the begin of a line and
// wipe it.
func canMove(kind string) bool { return kind != "" && kind != "dumb" }

// fewest is how many columns something can be said in.
const fewest = 12

// columns is the width to draw in at the moment; 0 where nothing can be drawn.
func (s *screen) columns() int {
	if s.size == nil {
		return 0
	}
	if columns := s.size(); columns >= fewest {
		return columns
	}
	return 0
}

// wipe begins a line anew.
const wipe = "\r\x1b[K"

// Write writes a log line.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn {
		s.drawn = false
		if _, err := io.WriteString(s.w, wipe); err != nil {
			return 0, err
		}
	}
	return s.w.Write(p)
}

// draw puts a bar in the place of the one before.
func (s *screen) draw(bar string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drawn = true
	_, err := io.WriteString(s.w, wipe+bar)
	return err
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
