// Package terminal shows the progress of a run on standard error: as a bar, if a terminal can
// draw a bar, else as log lines.
package terminal

import (
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// Screen lets log lines and a progress bar share one terminal: a log line first erases the
// bar, and the next step draws the bar again.
type Screen struct {
	// size returns the width of the terminal; nil if no bar can be drawn.
	size func() (columns int)

	// mu is held while writing, so that lines stay whole.
	mu    sync.Mutex
	w     io.Writer
	drawn bool
}

// OpenScreen detects whether w is a terminal on which a bar can be drawn. The bar has no
// colors, so NO_COLOR needs no support.
func OpenScreen(w io.Writer) *Screen {
	s := &Screen{w: w}
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

// canMove reports whether a terminal of this kind can return to the start of a line and erase
// the line.
func canMove(kind string) bool { return kind != "" && kind != "dumb" }

// fewest is the minimum number of columns for a useful line.
const fewest = 12

// Columns returns the current width; 0 if no bar can be drawn.
func (s *Screen) Columns() int {
	if s.size == nil {
		return 0
	}
	if columns := s.size(); columns >= fewest {
		return columns
	}
	return 0
}

// wipe returns to the start of the line and erases the line.
const wipe = "\r\x1b[K"

// Write writes a log line.
func (s *Screen) Write(p []byte) (int, error) {
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

// draw replaces the previous bar.
func (s *Screen) draw(bar string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drawn = true
	_, err := io.WriteString(s.w, wipe+bar)
	return err
}

// endBar keeps the bar on the terminal and continues below the bar.
func (s *Screen) endBar() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn {
		s.drawn = false
		_, _ = io.WriteString(s.w, "\n")
	}
}
