package rig

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Sources returns a copy of the repository's sources, without its history, as another user might
// have it: in another folder, with other times, and with the modes of another umask. The file
// named extra, which is part of no program, is there in addition, unless the name is empty.
func Sources(t testing.TB, extra string) string {
	t.Helper()
	root, folder := Root(t), filepath.Join(t.TempDir(), "another folder")
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "-co", "--exclude-standard")
	list.Dir = root
	names, err := list.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	files := map[string][]byte{}
	for name := range bytes.SplitSeq(bytes.TrimRight(names, "\x00"), []byte{0}) {
		content, err := os.ReadFile(filepath.Join(root, string(name)))
		if os.IsNotExist(err) { // removed, and not committed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		files[string(name)] = content
	}
	if extra != "" {
		files[extra] = nil
	}
	long := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	for name, content := range files {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if info, err := os.Stat(filepath.Join(root, name)); err == nil && info.Mode()&0o100 != 0 {
			mode = 0o700
		}
		if err := os.WriteFile(path, content, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}
