package kubernetes

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// readProject reads what the overlays are compared with: documents, the Compose file, and the
// programs, which run for a moment.
func readProject(t *testing.T, programs string) *project {
	t.Helper()
	manual := read(t, "docs", "operations.md")
	p := &project{
		settings: make(map[string]map[string]string), paths: make(map[string][]string), images: composeImages(t),
		permissions: permissionsOf(t, manual), secrets: secretsOf(t),
	}
	for service, heading := range map[string]string{"rpc-server": "### Server", "rpc-client": "### Client"} {
		p.settings[service] = make(map[string]string)
		for _, heading := range []string{"### Both services", "### Tracing, both services", heading} {
			settingsOf(t, manual, heading, p.settings[service])
		}
		p.paths[service] = served(t, filepath.Join(programs, service))
	}
	return p
}

func read(t *testing.T, name ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(append([]string{root}, name...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// settingsOf reads the variables and defaults of a section of the manual, which another test
// compares with the code.
func settingsOf(t *testing.T, manual, heading string, into map[string]string) {
	t.Helper()
	_, text, found := strings.Cut(manual, "\n"+heading+"\n")
	if !found {
		t.Fatalf("docs/operations.md has no section %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n##")
	rows := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| (?:`([^`]*)`|–) \\|").FindAllStringSubmatch(text, -1)
	if len(rows) == 0 {
		t.Fatalf("the section %q has no settings", heading)
	}
	for _, row := range rows {
		into[row[1]] = row[2]
	}
}

// permissionsOf reads the commands that set the permissions of a server and of a client of the
// request exchange, whose user is orders in the manual. The user of the autoscaler has none.
func permissionsOf(t *testing.T, manual string) map[string][3]string {
	t.Helper()
	permissions := map[string][3]string{"rpc-autoscaler": {}}
	command := regexp.MustCompile(`rabbitmqctl set_permissions (server|orders) '([^']+)' \\\s+'([^']+)' '([^']+)'`)
	for _, found := range command.FindAllStringSubmatch(manual, -1) {
		user := strings.Replace("rpc-"+found[1], "orders", "client", 1)
		for i, pattern := range found[2:] {
			found[2+i] = strings.ReplaceAll(pattern, `\.orders\.`, `\.`+user+`\.`)
		}
		permissions[user] = [3]string(found[2:])
	}
	const roles = 3
	if len(permissions) != roles {
		t.Fatalf("docs/operations.md has the permissions %v", permissions)
	}
	return permissions
}

// secretsOf reads the keys of the Secrets that the document tells to create.
func secretsOf(t *testing.T) map[string][]string {
	t.Helper()
	secrets := make(map[string][]string)
	document := read(t, "docs", "kubernetes.md")
	users := regexp.MustCompile(`for user in ([^;]+);`).FindStringSubmatch(document)
	if users == nil {
		t.Fatal("docs/kubernetes.md has no loop over the users")
	}
	commands := regexp.MustCompile(`create secret generic (\S+)((?:\s+(?:\\\n\s*)?--from-(?:literal|file)=\S+)+)`)
	for _, command := range commands.FindAllStringSubmatch(document, -1) {
		for _, key := range regexp.MustCompile(`=([^=\s]+)=`).FindAllStringSubmatch(command[2], -1) {
			for user := range strings.FieldsSeq(users[1]) {
				name := strings.ReplaceAll(command[1], `"$user"`, user)
				if !slices.Contains(secrets[name], key[1]) {
					secrets[name] = append(secrets[name], key[1])
				}
			}
		}
	}
	return secrets
}

// composeImages returns the names of the images of the Compose file, without tags.
func composeImages(t *testing.T) map[string]string {
	t.Helper()
	var file struct {
		Services map[string]struct{ Image string }
	}
	if err := yaml.Unmarshal([]byte(read(t, "docker-compose.yml")), &file); err != nil {
		t.Fatal(err)
	}
	images := make(map[string]string)
	for name, service := range file.Services {
		images[name], _, _ = strings.Cut(service.Image, ":")
	}
	return images
}

// buildPrograms compiles the programs of the images and returns their folder.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", dir, "./services/...")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the services: %v\n%s", err, out)
	}
	return dir
}

// served starts a service without a broker and returns the paths that it serves.
func served(t *testing.T, program string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = []string{"HTTP_ADDR=127.0.0.1:0", "AMQP_URL=amqp://guest:guest@127.0.0.1:1/", "LOG_FORMAT=json", "RPC_REPORT_DIR="}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var paths []string
	address := regexp.MustCompile(`"http_addr":"([^"]+)"`)
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		found := address.FindStringSubmatch(lines.Text())
		if found == nil {
			continue
		}
		for _, path := range []string{"/livez", "/readyz", "/pingz", "/metrics", "/healthz"} {
			if status(ctx, t, "http://"+found[1]+path) != http.StatusNotFound {
				paths = append(paths, path)
			}
		}
		break
	}
	cancel()
	_ = cmd.Wait() // it was killed
	if len(paths) == 0 {
		t.Fatalf("%s serves nothing", program)
	}
	return paths
}

func status(ctx context.Context, t *testing.T, url string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode
}
