//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// TestImagesAreReproducible builds the images twice: here, and from sources in another folder with
// other times, another umask and a file that keeps the engine from using the first build. Both
// have the same image IDs, and their programs are those of a build without an engine, which also
// has another build cache.
func TestImagesAreReproducible(t *testing.T) {
	s := newStack(t)
	if !s.containers {
		t.Log("no Docker engine answers: there are no images")
		return
	}
	s.env = append(s.env, "VERSION=v1", "REVISION=abc", "SOURCE_DATE_EPOCH=1000000000")
	first := s.releaseImages(s.root, s.project+"-1")
	second := s.releaseImages(rig.Sources(t, "pkg/unused"), s.project+"-2")
	if len(first) != 2 || !slices.Equal(first, second) {
		t.Errorf("image IDs %q and then %q", first, second)
	}
	for image, programs := range released() {
		s.checkContent(t, image+":"+s.project+"-1", programs)
	}
}

// released returns the programs of each image.
func released() map[string][]string {
	return map[string][]string{"rabbitmq-rpc/client": {"rpc-client"}, "rabbitmq-rpc/server": {"rpc-server", "rpc-certificates", "rpc-definitions"}}
}

// releaseImages builds both images from a folder, and returns their IDs.
func (s *stack) releaseImages(folder, tag string) []string {
	s.t.Helper()
	at := *s
	at.root = folder
	out, err := at.outputWith(s.t.Context(), "IMAGE_TAG="+tag, "deploy/release-images.sh")
	s.t.Cleanup(func() {
		for image := range released() { // after the test, whose context has ended
			if out, err := s.output(context.WithoutCancel(s.t.Context()), "docker", "image", "rm", "-f", image+":"+tag); err != nil {
				s.t.Errorf("%v\n%s", err, out)
			}
		}
	})
	if err != nil {
		s.t.Fatalf("deploy/release-images.sh in %s: %v\n%s", folder, err, out)
	}
	var ids []string
	for line := range strings.Lines(out) {
		if name, id, found := strings.Cut(strings.TrimSpace(line), " sha256:"); found && strings.HasSuffix(name, ":"+tag) {
			ids = append(ids, id)
		}
	}
	return ids
}

// checkContent checks the files of an image: the licences, the SBOM, and its programs.
func (s *stack) checkContent(t *testing.T, image string, programs []string) {
	t.Helper()
	container := strings.TrimSpace(s.must("docker", "create", image))
	dir := t.TempDir()
	s.must("docker", "cp", container+":/", dir)
	s.must("docker", "rm", container)
	sbom := read(t, filepath.Join(dir, "sbom.cdx.json"))
	for _, name := range []string{"LICENSE", "THIRD_PARTY_NOTICES"} {
		if !bytes.Equal(read(t, filepath.Join(dir, name)), read(t, filepath.Join(s.root, name))) {
			t.Errorf("%s: /%s is not the one of the repository", image, name)
		}
	}
	for _, name := range programs {
		path := filepath.Join(dir, name)
		content := read(t, path)
		sum := sha256.Sum256(content)
		if !bytes.Contains(sbom, []byte(hex.EncodeToString(sum[:]))) {
			t.Errorf("the SBOM of %s does not have the hash of %s", image, name)
		}
		if here := s.plainBuild(t, name, path); !bytes.Equal(content, here) {
			t.Errorf("%s: %d bytes in the image, %d other bytes in a build without an engine", name, len(content), len(here))
		}
	}
}

// plainBuild builds a program with the version of Go that built the program at path.
func (s *stack) plainBuild(t *testing.T, name, path string) []byte {
	t.Helper()
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-trimpath",
		"-ldflags", "-s -w -X rabbitmq-rpc/internal/version.stamped=v1", "-o", out, "./services/"+name)
	cmd.Dir, cmd.Env = s.root, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOTOOLCHAIN="+info.GoVersion)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("go build %s: %w\n%s", name, err, said))
	}
	return read(t, out)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
