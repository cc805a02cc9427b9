package ledger

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Suffix is the ending of the names of ledger files.
const Suffix = ".ledger"

// ReadDir calls each for every entry of every ledger in a folder, file by file.
func ReadDir(dir string, each func(Entry)) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+Suffix))
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	if len(paths) == 0 {
		return fmt.Errorf("ledger: none in %s", dir)
	}
	for _, path := range paths {
		if err := readFile(path, each); err != nil {
			return err
		}
	}
	return nil
}

func readFile(path string, each func(Entry)) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := Read(f, each); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Read calls each for every complete line. A last line without its end was cut by the death of
// its writer before any action on the entry, and is left out.
func Read(r io.Reader, each func(Entry)) error {
	lines := bufio.NewReader(r)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("ledger: %w", err)
		}
		var e Entry
		if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
			return fmt.Errorf("ledger: line %d: %w", number, err)
		}
		each(e)
	}
}
