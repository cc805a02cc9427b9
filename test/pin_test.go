package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// dockerWithRegistry stands for a Docker engine with a registry that has two images. One of them
// was pulled from another repository too.
const dockerWithRegistry = `#!/bin/sh
case "$*" in
version*) echo 1 ;;
"pull -q golang:1.26" | "pull -q registry.test:5000/team/broker:4") ;;
*golang:1.26) printf '%s\n' mirror.test/golang@sha256:aa golang@sha256:bb ;;
*broker:4) echo registry.test:5000/team/broker@sha256:cc ;;
*) exit 1 ;;
esac
`

// pin runs deploy/pin.sh with that engine and a .env, and returns the .env after it.
func pin(t *testing.T, before, broker string) (after string, err error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(dockerWithRegistry), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "env")
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(rig.Root(t), "deploy", "pin.sh"))
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "ENV_FILE="+file, "GO_IMAGE=", "RABBITMQ_IMAGE="+broker)
	said, err := cmd.CombinedOutput()
	t.Logf("%s", said)
	content, failed := os.ReadFile(file)
	if failed != nil {
		t.Fatal(failed)
	}
	return string(content), err
}

// TestPin: the digests replace earlier ones in .env, and other lines stay.
func TestPin(t *testing.T) {
	t.Parallel()
	after, err := pin(t, "GO_IMAGE=old\nRPC_CALLS=5", "registry.test:5000/team/broker:4")
	const want = "RPC_CALLS=5\nGO_IMAGE=golang@sha256:bb\nRABBITMQ_IMAGE=registry.test:5000/team/broker@sha256:cc\n"
	if err != nil || after != want {
		t.Errorf("%q (%v), want %q", after, err, want)
	}
}

// TestPinWithoutRegistry: if one image cannot be pulled, nothing is changed.
func TestPinWithoutRegistry(t *testing.T) {
	t.Parallel()
	const before = "GO_IMAGE=old\n"
	if after, err := pin(t, before, "gone:1"); err == nil || after != before {
		t.Errorf("%q (%v), want an error and %q", after, err, before)
	}
}

// TestActionsArePinned: workflows name actions by commit, because a tag can be moved.
func TestActionsArePinned(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../.github/workflows/*.yml")
	if err != nil || len(files) < 2 {
		t.Fatalf("workflows %q (%v)", files, err)
	}
	pinned := regexp.MustCompile(`^[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, uses := range regexp.MustCompile(`(?m)^[ -]*uses: *(.*)$`).FindAllSubmatch(content, -1) {
			if !pinned.Match(uses[1]) {
				t.Errorf("%s: %s", name, uses[1])
			}
		}
	}
}
