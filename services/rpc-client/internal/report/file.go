package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write writes report.json and report.html to dir and returns the paths of the files written.
// If one file fails, Write still writes the other file.
func (r *Report) Write(dir string) (paths []string, err error) {
	for _, f := range []struct {
		name   string
		render func() ([]byte, error)
	}{
		{"report.json", r.JSON},
		{"report.html", r.HTML},
	} {
		path := filepath.Join(dir, f.name)
		content, failed := f.render()
		if failed == nil {
			failed = replace(path, content)
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("write the report %s: %w", path, failed))
			continue
		}
		paths = append(paths, path)
	}
	return paths, err
}

// JSON returns the report for programs.
func (r *Report) JSON() ([]byte, error) {
	content, err := json.MarshalIndent(r, "", "  ")
	return append(content, '\n'), err
}

// replace writes a file atomically: a reader sees either the whole new content or the old
// content. After an error, no partial file remains.
func replace(path string, content []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".report-*")
	if err != nil {
		return err
	}
	_, err = temp.Write(content)
	const readable = 0o644
	err = errors.Join(err, temp.Chmod(readable), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err == nil {
		return nil
	}
	if left := os.Remove(temp.Name()); left != nil && !errors.Is(left, fs.ErrNotExist) {
		err = errors.Join(err, left)
	}
	return err
}

// PrepareDir makes sure that a report can be written to dir, creating it if needed.
func PrepareDir(dir string) error {
	const enterable = 0o755
	if err := os.MkdirAll(dir, enterable); err != nil {
		return err
	}
	probe, err := os.CreateTemp(dir, ".report-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}
