package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// maxFile bounds the files that a setting names; certificates and URLs are far smaller.
const maxFile = 1 << 20

// ReadFile reads a file that the operator named. What is not an ordinary file could
// keep a service waiting, or have no end. The error does not hold the name of a file that
// is not there: it may be a secret that got into the wrong variable.
func ReadFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, withoutPath(err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not an ordinary file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, info.Size(), maxFile)
	}
	content, err := os.ReadFile(path) //nolint:gosec // the operator names the file, to be read
	if err != nil {
		return nil, withoutPath(err)
	}
	return content, nil
}

// withoutPath returns the cause of an error of a file without the file's name.
func withoutPath(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return failed.Err
	}
	return err
}
