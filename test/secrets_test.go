package test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// password is the secret of TestProgramsKeepSecrets. No character of it is changed by the
// encoding of a URL.
const password = "hunter2-S3cr3t"

// nowhere is an address without a listener: the port is reserved and needs root.
const nowhere = "127.0.0.1:1"

// mistyped holds values with a secret in them, as people write them: URLs that are not encoded,
// lists in other forms, URLs of another kind, and values that belong into another variable.
func mistyped() []string {
	forms := []string{
		"amqp://guest:$@H/", "amqp://guest:$@x@H/", "amqp://guest:$#x@H/", "amqp://guest:$/x@H/", "amqp://guest:123/$@H/",
		"amqp://guest:1?$@H/", "amqp://guest:1#$@H/", "amqp://guest:$%zz@H/", "amqp://guest:$ x@H/", "amqp://guest:12,$@H/",
		"amqp://guest:12,amqp://$@H/", "amqp://guest:$]@H/", "amqp://$@H/", "amqp://guest:guest@H/?password=$",
		"amqp://H/guest:$", "ampq://guest:$@H/", "amqp:guest:$@127.0.0.1", "amqp://guest:$\nx@H/", `"amqp://guest:$@H/"`,
		"amqp://guest:guest@H/;amqp://guest:$@H/", "amqp://guest:guest@H/ amqp://guest:$@H/", "amqps://guest:$@H/", "guest:$@H",
		"$", "/nonexistent/$", "authorization Bearer $", "authorization=Bearer%20$", "a=b,$=c", "api.token=$",
		"http://u:$@H", "http://H/$/otlp", "https://u:$@H/",
	}
	for i, form := range forms {
		forms[i] = strings.NewReplacer("$", password, "H", nowhere).Replace(form)
	}
	return forms
}

// places lists the variables that take a URL, a secret or a file with one, and some that refuse
// one. The places of a group are filled together, because a service reports all its faults at
// once; values that a service accepts take effect in every place of the group. "content of NAME"
// is a file that NAME names.
func places() [][]string {
	return [][]string{
		{"AMQP_URL"},
		{"content of AMQP_URL_FILE"},
		{"AMQP_URL_FILE", "HTTP_ADDR", "RPC_QUEUE_TYPE", "OTEL_EXPORTER_OTLP_CERTIFICATE"},
		{"AMQP_TLS_CA_FILE", "AMQP_TLS_CERT_FILE", "AMQP_TLS_KEY_FILE"},
		{"content of AMQP_TLS_CA_FILE"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"},
		{"OTEL_RESOURCE_ATTRIBUTES"},
	}
}

// TestProgramsKeepSecrets starts the services, as users build them, with every mistyped value in
// every place. Neither output nor /readyz, /metrics and the report may show the secret. The client
// reads its settings with the server's code, so it runs only with values that the server accepts.
func TestProgramsKeepSecrets(t *testing.T) {
	t.Parallel()
	programs := buildPrograms(t)
	const atOnce = 8
	running := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	var accepted atomic.Int32
	for _, group := range places() {
		for number, value := range mistyped() {
			run := &secretRun{
				t: t, what: fmt.Sprintf("%s=%q", strings.Join(group, ", "), value),
				dir: t.TempDir(), places: group, value: value, json: number%2 == 0,
			}
			running <- struct{}{}
			all.Go(func() {
				defer func() { <-running }()
				if run.start(filepath.Join(programs, "rpc-server")) {
					accepted.Add(1)
					run.start(filepath.Join(programs, "rpc-client"))
					run.checkReport()
				}
			})
		}
	}
	all.Wait()
	t.Logf("the services accept %d of %d", accepted.Load(), len(places())*len(mistyped()))
	if accepted.Load() < int32(len(mistyped())) {
		t.Error("most values are refused: this test hardly looks at running services")
	}
}

// buildPrograms compiles both services and returns their folder.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", dir, "./services/...")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the services: %v\n%s", err, out)
	}
	return dir
}

// secretRun is one value in one group of places.
type secretRun struct {
	t      *testing.T
	what   string
	dir    string // of the report, and of a file that a variable names
	places []string
	value  string
	json   bool // the format of the log
}

// environment returns the variables of a process that runs until a signal, with the value in the
// places.
func (r *secretRun) environment() []string {
	variables := map[string]string{
		"HTTP_ADDR": "127.0.0.1:0", "LOG_LEVEL": "debug", "LOG_FORMAT": "console", "RPC_REPORT_DIR": r.dir,
		"AMQP_URL": "amqp://guest:" + password + "@" + nowhere + "/", "RPC_DURATION": "1h", "RPC_TIMEOUT": "100ms",
	}
	if r.json {
		variables["LOG_FORMAT"] = "json"
	}
	for _, place := range r.places {
		name, inFile := strings.CutPrefix(place, "content of ")
		value := r.value
		if inFile {
			value = filepath.Join(r.dir, "file")
			if err := os.WriteFile(value, []byte(r.value+"\n"), 0o600); err != nil {
				r.t.Error(err)
			}
		}
		switch {
		case name == "AMQP_URL_FILE":
			delete(variables, "AMQP_URL")
		case strings.HasPrefix(name, "AMQP_TLS_"):
			variables["AMQP_URL"] = "amqps://guest:" + password + "@" + nowhere + "/"
		case strings.HasPrefix(name, "OTEL_"):
			variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = cmp.Or(variables["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://"+nowhere)
		}
		variables[name] = value
	}
	var list []string
	for name, value := range variables {
		list = append(list, name+"="+value)
	}
	return list
}

// start runs a process to its end: until it refuses its settings, or until it has reported that
// it has no connection, has answered over HTTP and has received SIGTERM. It reports whether the
// process accepted its settings.
func (r *secretRun) start(program string) (served bool) {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	reader, writer := io.Pipe()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env, cmd.Stdout, cmd.Stderr = r.environment(), writer, writer
	if err := cmd.Start(); err != nil {
		r.t.Error(err)
		return false
	}
	ended := make(chan error, 1)
	go func() { // ends with the process
		ended <- cmd.Wait()
		_ = writer.Close()
	}()
	served = r.follow(ctx, reader, cmd.Process)
	err := <-ended
	exit, _ := errors.AsType[*exec.ExitError](err)
	const badSettings = 2
	if refused := exit != nil && exit.ExitCode() == badSettings; refused == served || ctx.Err() != nil {
		r.t.Errorf("%s with %s ended with %v; served HTTP: %v", program, r.what, err, served)
	}
	return served
}

// checkReport checks the client's report.
func (r *secretRun) checkReport() {
	for _, name := range []string{"report.json", "report.html"} {
		content, err := os.ReadFile(filepath.Join(r.dir, name))
		if err != nil {
			r.t.Errorf("%s: %v", r.what, err)
		}
		r.check(name, content)
	}
}

// follow checks each line of a process. After the line that tells of the missing connection it
// queries the process over HTTP and sends SIGTERM. It reports whether there was such a line.
func (r *secretRun) follow(ctx context.Context, lines io.Reader, process *os.Process) (served bool) {
	address := regexp.MustCompile(`"http_addr": ?"([^"]+)"`)
	var addr string
	for scanner := bufio.NewScanner(lines); scanner.Scan(); {
		line := scanner.Bytes()
		r.check("the output", line)
		if found := address.FindSubmatch(line); found != nil {
			addr = string(found[1])
		}
		if served || !bytes.Contains(line, []byte("connection lost, reconnecting")) {
			continue
		}
		served = true
		for _, path := range []string{"/readyz", "/metrics", "/pingz", "/livez"} {
			r.check(path, r.get(ctx, "http://"+addr+path))
		}
		if err := process.Signal(syscall.SIGTERM); err != nil {
			r.t.Errorf("%s: %v", r.what, err)
		}
	}
	return served
}

func (r *secretRun) get(ctx context.Context, url string) []byte {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		r.t.Errorf("%s: %v", r.what, err)
		return nil
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Errorf("%s: %v", r.what, err)
		return nil
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || len(body) == 0 && !slices.Contains([]int{http.StatusOK, http.StatusNoContent}, response.StatusCode) {
		r.t.Errorf("%s: %s: %s, %v", r.what, url, response.Status, err)
	}
	return body
}

// check reports an error if a text contains a part of the secret.
func (r *secretRun) check(where string, text []byte) {
	lower := bytes.ToLower(text)
	for part := range strings.SplitSeq(strings.ToLower(password), "-") {
		if bytes.Contains(lower, []byte(part)) {
			r.t.Errorf("%s: %s shows the secret: %s", r.what, where, text)
		}
	}
}
