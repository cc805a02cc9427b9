package test

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/google/licensecheck"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"rabbitmq-rpc/internal/supply"
	"rabbitmq-rpc/test/internal/rig"
)

// accepted are the licences whose obligations the notices of the images meet.
func accepted() []string { return []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT"} }

// images returns the programs of each image.
func images() map[string][]string {
	return map[string][]string{"rpc-client": {"rpc-client"}, "rpc-server": {"rpc-server", "rpc-certificates", "rpc-definitions"}}
}

func services() []string {
	var all []string
	for _, programs := range images() {
		for _, p := range programs {
			all = append(all, "rabbitmq-rpc/services/"+p)
		}
	}
	return all
}

// TestLicences: the licence of each linked module is on the list of accepted licences, and is the
// one that its files state.
func TestLicences(t *testing.T) {
	t.Parallel()
	known, err := supply.Licences()
	if err != nil {
		t.Fatal(err)
	}
	modules, err := supply.Modules(t.Context(), rig.Root(t), services()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modules {
		want := strings.Split(known[m.Path], " AND ")
		delete(known, m.Path)
		for _, id := range want {
			if !slices.Contains(accepted(), id) {
				t.Errorf("%s: the licence %q is not accepted", m.Path, id)
			}
		}
		if got := stated(t, m.Files); !slices.Equal(got, want) {
			t.Errorf("%s: its files %v state %q, licences.txt says %q", m.Path, slices.Sorted(maps.Keys(m.Files)), got, want)
		}
	}
	if len(modules) < 20 || len(known) > 0 {
		t.Errorf("%d modules are linked; licences.txt has lines of modules that are not: %v", len(modules), known)
	}
}

// stated returns the licences that files state, by an independent reader.
func stated(t *testing.T, files map[string]string) []string {
	t.Helper()
	found := map[string]bool{}
	for name, file := range files {
		if strings.HasPrefix(strings.ToUpper(path.Base(name)), "NOTICE") {
			continue // names other programs
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cover := licensecheck.Scan(text)
		if cover.Percent < 95 {
			t.Errorf("%s: only %.0f %% of it is a known licence", file, cover.Percent)
		}
		for _, m := range cover.Match {
			found[m.ID] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// release returns the command with which the Dockerfiles build the programs, for the version v1.
func release(t *testing.T) []string {
	t.Helper()
	var commands []string
	for _, name := range []string{"Dockerfile.client", "Dockerfile.server"} {
		content, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`(?m)^RUN go build (-.*) -ldflags "(.*)" -o /out/ \./services/\.\.\. && `).FindStringSubmatch(string(content))
		if found == nil {
			t.Fatalf("%s builds no programs", name)
		}
		commands = append(commands, found[1], strings.ReplaceAll(found[2], "${VERSION}", "v1"))
	}
	if commands[0] != commands[2] || commands[1] != commands[3] {
		t.Fatalf("the Dockerfiles build differently: %q", commands)
	}
	return append(append([]string{"build"}, strings.Fields(commands[0])...), "-ldflags", commands[1], "./services/...")
}

// build builds the programs in the folder like the images, and returns where they are.
func build(t *testing.T, folder string, args []string) string {
	t.Helper()
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", slices.Insert(slices.Clone(args), 1, "-buildvcs=false", "-o", out+"/")...)
	cmd.Dir, cmd.Env = folder, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %q in %s: %v\n%s", args, folder, err, said)
	}
	return out
}

// TestProgramsAreReproducible: the same sources in another folder and at another time are the same
// programs. Another build cache is part of the end-to-end test.
func TestProgramsAreReproducible(t *testing.T) {
	t.Parallel()
	args := release(t)
	one, two := build(t, rig.Root(t), args), build(t, rig.Sources(t, ""), args)
	for _, programs := range images() {
		for _, name := range programs {
			here, err := os.ReadFile(filepath.Join(one, name))
			if err != nil {
				t.Fatal(err)
			}
			there, err := os.ReadFile(filepath.Join(two, name))
			if err != nil || !bytes.Equal(here, there) {
				t.Errorf("%s: %d and %d bytes that differ (%v)", name, len(here), len(there), err)
			}
			if bytes.Contains(here, []byte(rig.Root(t))) {
				t.Errorf("%s contains the path of the sources", name)
			}
		}
	}
	for image, programs := range images() {
		checkSBOM(t, image, one, programs)
	}
}

// checkSBOM checks the SBOM of an image with the official schema and library, its components with
// what the go command says about the programs, and its licences with the Dockerfile's label.
func checkSBOM(t *testing.T, image, folder string, programs []string) {
	t.Helper()
	authorities := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(authorities, []byte("certificates"), 0o600); err != nil {
		t.Fatal(err)
	}
	of := supply.Image{Name: image, Version: "v1", Files: []supply.File{{Path: authorities, Licence: "MPL-2.0"}}}
	want := map[string]bool{authorities: true}
	for _, p := range programs {
		of.Programs = append(of.Programs, filepath.Join(folder, p))
		want[p] = true
		addLinked(t, want, filepath.Join(folder, p))
	}
	content, err := supply.SBOM(of)
	if err != nil {
		t.Fatal(err)
	}
	validate(t, content)
	sbom := new(cyclonedx.BOM)
	strict := json.NewDecoder(bytes.NewReader(content))
	strict.DisallowUnknownFields()
	if err := strict.Decode(sbom); err != nil {
		t.Fatal(err)
	}
	checkComponents(t, sbom, want)
	label, err := os.ReadFile("../Dockerfile." + strings.TrimPrefix(image, "rpc-"))
	if err != nil {
		t.Fatal(err)
	}
	licences := licencesOf(t, sbom.Metadata.Component)
	if !strings.Contains(string(label), `org.opencontainers.image.licenses="`+licences+`"`) {
		t.Errorf("the label of the image does not say %q", licences)
	}
}

// addLinked adds the package URLs of the modules that the go command finds in a program.
func addLinked(t *testing.T, all map[string]bool, program string) {
	t.Helper()
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	all["pkg:golang/std@"+strings.TrimPrefix(info.GoVersion, "go")] = true
	said, err := exec.CommandContext(t.Context(), "go", "version", "-m", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(said)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 3 || fields[0] != "dep":
		case strings.HasPrefix(fields[1], info.Main.Path+"/"):
			all["pkg:golang/"+fields[1]+"@v1"] = true
		default:
			all["pkg:golang/"+fields[1]+"@"+fields[2]] = true
		}
	}
}

func checkComponents(t *testing.T, sbom *cyclonedx.BOM, want map[string]bool) {
	t.Helper()
	got := map[string]bool{sbom.Metadata.Component.BOMRef: true}
	for _, c := range *sbom.Components {
		if got[c.BOMRef] || !want[c.BOMRef] {
			t.Errorf("%s is there twice, or is not part of a program", c.BOMRef)
		}
		got[c.BOMRef] = true
		delete(want, c.BOMRef)
		licences := licencesOf(t, &c)
		for id := range strings.SplitSeq(licences, " AND ") {
			if c.Type != cyclonedx.ComponentTypeFile && !slices.Contains(accepted(), id) {
				t.Errorf("%s has the licence %q", c.BOMRef, licences)
			}
		}
		published := c.Type == cyclonedx.ComponentTypeLibrary && c.Name != supply.Standard && c.Version != "v1"
		if c.Version == "" && c.Type != cyclonedx.ComponentTypeFile || published && c.Hashes == nil {
			t.Errorf("%s has no version or no hash", c.BOMRef)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", slices.Sorted(maps.Keys(want)))
	}
	for _, d := range *sbom.Dependencies {
		for _, ref := range append([]string{d.Ref}, *d.Dependencies...) {
			if !got[ref] {
				t.Errorf("a dependency names %s, which is no component", ref)
			}
		}
	}
}

func licencesOf(t *testing.T, c *cyclonedx.Component) string {
	t.Helper()
	if c.Licenses == nil || len(*c.Licenses) != 1 || (*c.Licenses)[0].Expression == "" {
		t.Fatalf("%s has no licence", c.BOMRef)
	}
	return (*c.Licenses)[0].Expression
}

// validate checks an SBOM against the schemas that the official library has for its own tests.
func validate(t *testing.T, sbom []byte) {
	t.Helper()
	folder, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.UseLoader(schemas(filepath.Join(strings.TrimSpace(string(folder)), "schema")))
	schema, err := compiler.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(sbom))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(document); err != nil {
		t.Errorf("the SBOM does not match the schema: %v", err)
	}
	if schema.Validate(map[string]any{"bomFormat": "none"}) == nil {
		t.Error("the schema accepts everything")
	}
}

// schemas is a folder of schemas; only there the names of some files differ from their addresses.
type schemas string

// Load implements jsonschema.URLLoader.
func (s schemas) Load(url string) (any, error) {
	names, err := filepath.Glob(filepath.Join(string(s), strings.TrimSuffix(path.Base(url), ".schema.json")+".schema*json"))
	if err != nil || len(names) != 1 {
		return nil, errors.Join(err, errors.New("no schema "+url))
	}
	file, err := os.Open(names[0])
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return jsonschema.UnmarshalJSON(file)
}
