package supply

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// The files that docker save writes and docker load reads:
// https://github.com/moby/docker-image-spec/blob/main/v1.2.md#combined-image-json--filesystem-changeset-format
type (
	// savedManifest is an entry of manifest.json.
	savedManifest struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	// savedConfig is the configuration of an image. Its digest is the image's ID.
	savedConfig struct {
		Architecture string         `json:"architecture"`
		Config       map[string]any `json:"config"`
		Created      time.Time      `json:"created"`
		History      []savedStep    `json:"history"`
		OS           string         `json:"os"`
		RootFS       savedLayers    `json:"rootfs"`
		Variant      string         `json:"variant,omitempty"`
	}
	savedStep struct {
		Created   time.Time `json:"created"`
		CreatedBy string    `json:"created_by"`
	}
	savedLayers struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
)

// settings returns the names of the settings that a Dockerfile makes. Builders add others to the
// configuration, such as the name of the container that they built in.
func settings() []string {
	return []string{"Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "StopSignal", "User", "Volumes", "WorkingDir"}
}

// Reproducible reads an image that docker save has written, and writes the image for docker load
// under the name tag, without the traces of its build: one layer, its files in the order of their
// names, all times equal to created, and only the modes that git knows. Two builds of the same
// sources have the same image ID. It holds the whole image in memory.
//
// The image must be made by copying files and folders into an empty image; other entries, such as
// links and removed files, are refused.
func Reproducible(in io.Reader, out io.Writer, tag string, created time.Time) error {
	saved, err := readArchive(in)
	if err != nil {
		return err
	}
	var manifests []savedManifest
	if err := json.Unmarshal(saved["manifest.json"], &manifests); err != nil {
		return fmt.Errorf("manifest.json: %w", err)
	}
	if len(manifests) != 1 {
		return fmt.Errorf("want docker save of a single image, not of %d", len(manifests))
	}
	config := new(savedConfig)
	if err := json.Unmarshal(saved[manifests[0].Config], config); err != nil {
		return fmt.Errorf("configuration of the image: %w", err)
	}
	files := make(map[string]file)
	for _, name := range manifests[0].Layers {
		layer, found := saved[name]
		if !found {
			return fmt.Errorf("layer %s is missing", name)
		}
		if err := addLayer(files, layer); err != nil {
			return fmt.Errorf("layer %s: %w", name, err)
		}
	}
	created = created.UTC()
	layer, err := writeLayer(files, created)
	if err != nil {
		return err
	}
	config.clean(created, layer)
	return writeImage(out, config, layer, tag)
}

// clean removes the traces of a build.
func (c *savedConfig) clean(created time.Time, layer []byte) {
	for name, value := range c.Config {
		if value == nil || !slices.Contains(settings(), name) {
			delete(c.Config, name)
		}
	}
	c.Created = created
	c.History = []savedStep{{Created: created, CreatedBy: "supply image"}}
	c.RootFS = savedLayers{Type: "layers", DiffIDs: []string{"sha256:" + hexDigest(layer)}}
}

func hexDigest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// writeImage writes what docker load reads.
func writeImage(out io.Writer, config *savedConfig, layer []byte, tag string) error {
	encoded, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifest := []savedManifest{{Config: hexDigest(encoded) + ".json", RepoTags: []string{tag}, Layers: []string{hexDigest(layer) + ".tar"}}}
	index, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	for _, f := range []file{
		{name: manifest[0].Config, content: encoded},
		{name: manifest[0].Layers[0], content: layer},
		{name: "manifest.json", content: index},
	} {
		if err := f.write(archive, config.Created); err != nil {
			return err
		}
	}
	return archive.Close()
}

// file is a file or a folder of an image.
type file struct {
	name     string // with a slash at the end for a folder
	program  bool   // is executable
	uid, gid int
	content  []byte
}

// write writes f with one of the modes that git knows: those of files in a build's context depend
// on the umask of the clone.
func (f file) write(archive *tar.Writer, at time.Time) error {
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Uid: f.uid, Gid: f.gid, Size: int64(len(f.content)), ModTime: at, Format: tar.FormatPAX,
	}
	if f.program {
		header.Mode = 0o755
	}
	if strings.HasSuffix(f.name, "/") {
		header.Typeflag, header.Mode = tar.TypeDir, 0o755
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(f.content)
	return err
}

// readArchive returns the regular files of a tar archive by name.
func readArchive(in io.Reader) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for archive := tar.NewReader(in); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if files[header.Name], err = io.ReadAll(archive); err != nil {
			return nil, err
		}
	}
}

// addLayer adds the files of a layer, which replace those of the layers below.
func addLayer(files map[string]file, layer []byte) error {
	var in io.Reader = bytes.NewReader(layer)
	if bytes.HasPrefix(layer, []byte{0x1f, 0x8b}) { // engines with containerd's store save compressed layers
		unzipped, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		in = unzipped
	}
	for archive := tar.NewReader(in); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f := file{name: path.Clean(header.Name), program: header.Mode&0o111 != 0, uid: header.Uid, gid: header.Gid}
		switch {
		case strings.HasPrefix(path.Base(f.name), ".wh."):
			return fmt.Errorf("%s: a layer that removes files is not supported", header.Name)
		case header.Typeflag == tar.TypeDir:
			f.name += "/"
		case header.Typeflag != tar.TypeReg:
			return fmt.Errorf("%s: entries of type %q are not supported", header.Name, header.Typeflag)
		}
		if f.content, err = io.ReadAll(archive); err != nil {
			return err
		}
		files[f.name] = f
	}
}

func writeLayer(files map[string]file, at time.Time) ([]byte, error) {
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	for _, name := range sortedKeys(files) {
		if err := files[name].write(archive, at); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}
