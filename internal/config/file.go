package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// maxFile is the maximum size of a file that a setting names; certificates and URLs are far
// smaller.
const maxFile = 1 << 20

// ReadFile reads a file that the operator named. Only regular files are read, because another
// kind could block the service or have no end. If the file does not exist, the error omits the
// path, which may be a secret in the wrong variable.
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

// withoutPath returns the cause of a file error without the file's path.
func withoutPath(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return failed.Err
	}
	return err
}
