package supply

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNotices: the committed notices are those of the modules that the programs link.
func TestNotices(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	committed, err := os.ReadFile(filepath.Join(root, "THIRD_PARTY_NOTICES"))
	if err != nil {
		t.Fatal(err)
	}
	const services = "rabbitmq-rpc/services/"
	got, err := Notices(t.Context(), root, services+"rpc-client", services+"rpc-server", services+"rpc-certificates", services+"rpc-definitions")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, committed) {
		t.Error("THIRD_PARTY_NOTICES is not what the programs link: make notices")
	}
	programs, err := os.ReadDir(filepath.Join(root, "services"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if !strings.Contains(string(got), p.Name()) {
			t.Errorf("the notices do not name %s", p.Name())
		}
	}
}

// TestUnknownLicence: no module gets into an SBOM without a known licence, or without a checksum.
func TestUnknownLicence(t *testing.T) {
	t.Parallel()
	b := &builder{version: "v1", licences: map[string]string{"a.b/known": "MIT"}}
	for _, m := range []debug.Module{
		{Path: "a.b/unknown", Version: "v1.0.0", Sum: "h1:AAAA"},
		{Path: "a.b/known", Version: "v1.0.0", Replace: &debug.Module{Path: "../known"}},
		{Path: "a.b/known", Version: "v1.0.0", Sum: "h1:?"},
	} {
		if c, err := b.module(&m, "own"); err == nil {
			t.Errorf("%+v is %+v", m, c)
		}
	}
	c, err := b.module(&debug.Module{Path: "own/pkg/part", Version: "v0.0.0"}, "own")
	if err != nil || c.Version != "v1" || c.Licences[0].Expression != own {
		t.Errorf("a module of this repository is %+v (%v)", c, err)
	}
}

// saved returns an image as docker save writes it. Each layer is a list of entries.
func saved(t *testing.T, at time.Time, host string, layers ...[]tar.Header) []byte {
	t.Helper()
	files := make(map[string][]byte)
	var names []string
	for i, entries := range layers {
		var layer bytes.Buffer
		archive := tar.NewWriter(&layer)
		for _, e := range entries {
			content := e.Linkname // of a regular file
			if e.Typeflag == tar.TypeReg {
				e.Linkname, e.Size = "", int64(len(content))
			} else {
				content = ""
			}
			e.ModTime = at
			write(t, archive, &e, []byte(content))
		}
		closed(t, archive)
		if host == "zipped" {
			layer = zipped(t, layer.Bytes())
		}
		names = append(names, string(rune('a'+i))+"/layer.tar")
		files[names[i]] = layer.Bytes()
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": at, "container": host, "docker_version": host,
		"config": map[string]any{"User": "1:1", "Hostname": host, "Image": host, "Labels": map[string]string{"a": "b"}, "Cmd": nil},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]savedManifest{{Config: host + ".json", Layers: names}})
	if err != nil {
		t.Fatal(err)
	}
	files[host+".json"], files["manifest.json"] = config, manifest
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, name := range sortedKeys(files) {
		write(t, archive, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}, files[name])
	}
	closed(t, archive)
	return out.Bytes()
}

func write(t *testing.T, archive *tar.Writer, header *tar.Header, content []byte) {
	t.Helper()
	if err := archive.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Write(content); err != nil {
		t.Fatal(err)
	}
}

func zipped(t *testing.T, layer []byte) bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(layer); err != nil {
		t.Fatal(err)
	}
	closed(t, w)
	return out
}

func closed(t *testing.T, archive io.Closer) {
	t.Helper()
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
}

// regular and folder are entries of a layer. The content of a regular file is its Linkname.
func regular(name, content string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: mode}
}

func folder(name string, uid int) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, Uid: uid}
}

func reproducible(t *testing.T, image []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Reproducible(bytes.NewReader(image), &out, "x:1", time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestReproducible: builds at different times, by different builders, with files in another order,
// other layers and other umasks are the same image, and different content is a different one.
func TestReproducible(t *testing.T) {
	t.Parallel()
	one := saved(t, time.Unix(1.7e9, 5), "host1",
		[]tar.Header{regular("program", "code", 0o755), folder("etc/", 0)},
		[]tar.Header{regular("etc/a", "old", 0o600)},
		[]tar.Header{regular("etc/a", "data", 0o644), folder("report", 65532)})
	two := saved(t, time.Unix(1.8e9, 0), "zipped",
		[]tar.Header{folder("./report/", 65532), folder("etc", 0), regular("etc/a", "data", 0o664), regular("program", "code", 0o775)})
	other := saved(t, time.Unix(1.8e9, 0), "host2",
		[]tar.Header{folder("./report/", 0), folder("etc", 0), regular("etc/a", "data", 0o664), regular("program", "code", 0o775)})
	first := reproducible(t, one)
	if !bytes.Equal(first, reproducible(t, two)) {
		t.Error("two builds of the same content are different images")
	}
	if bytes.Equal(first, reproducible(t, other)) {
		t.Error("builds with another owner of a folder are the same image")
	}
	if !bytes.Equal(first, reproducible(t, first)) {
		t.Error("the image of an image differs")
	}
	files, err := readArchive(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	var manifest []savedManifest
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil || len(manifest) != 1 || !slices.Equal(manifest[0].RepoTags, []string{"x:1"}) {
		t.Fatalf("manifest %+v (%v)", manifest, err)
	}
	const want = `{"architecture":"amd64","config":{"Labels":{"a":"b"},"User":"1:1"},"created":"2001-09-09T01:46:40Z",` +
		`"history":[{"created":"2001-09-09T01:46:40Z","created_by":"supply image"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:`
	if config := string(files[manifest[0].Config]); !strings.HasPrefix(config, want) {
		t.Errorf("configuration\n%s, want\n%s…", config, want)
	}
	checkLayer(t, files[manifest[0].Layers[0]])
}

func checkLayer(t *testing.T, layer []byte) {
	t.Helper()
	var got []string
	for archive := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := archive.Next()
		if err != nil {
			break
		}
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name)
	}
	if want := []string{"drwxr-xr-x etc/", "-rw-r--r-- etc/a", "-rwxr-xr-x program", "drwxr-xr-x report/"}; !slices.Equal(got, want) {
		t.Errorf("layer %q, want %q", got, want)
	}
}

// TestNotReproducible: entries that a rewritten image would lose are refused.
func TestNotReproducible(t *testing.T) {
	t.Parallel()
	for name, image := range map[string][]byte{
		"link":     saved(t, time.Now(), "host", []tar.Header{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "b"}}),
		"removed":  saved(t, time.Now(), "host", []tar.Header{regular("a", "", 0o644)}, []tar.Header{regular(".wh.a", "", 0o644)}),
		"no layer": reproducible(t, saved(t, time.Now(), "host", []tar.Header{regular("a", "", 0o644)}))[:2048],
		"no image": nil,
		"no tar":   []byte("no tar"),
	} {
		if err := Reproducible(bytes.NewReader(image), new(bytes.Buffer), "x:1", time.Now()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
