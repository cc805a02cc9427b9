//go:build integration

package interop

import (
	"flag"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// everyLanguage is set by make interop, which installs the packages of every language. make test
// runs the programs with packages that it needs anyway.
var everyLanguage = flag.Bool("languages", false, "also run the programs of docs/interop with packages of their own") //nolint:gochecknoglobals // flags are read before the tests run

// program is a client or a server of docs/interop.
type program struct {
	language string
	// command compiles the program, if necessary, and returns how to run it.
	command func(t *testing.T) []string
	// stomp is true if the program uses STOMP, which cannot return a request that no queue accepts.
	stomp bool
}

// javaLibraries are RabbitMQ's client and the logging API that the client needs.
const javaLibraries = "/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar:/usr/share/java/slf4j-nop.jar"

func clients() []program {
	few := []program{
		{language: "python", command: interpreted(python, "client.py")},
		{language: "go", command: compiled("client", "go", "build", "-o", "client", "./go")},
		{language: "shell", command: interpreted("bash", "client.sh")},
	}
	if !*everyLanguage {
		return few
	}
	return append(
		few,
		program{language: "python-aio", command: interpreted(python, "client_aio.py")},
		program{language: "java", command: java("Client")},
		program{language: "ruby", command: interpreted("ruby", "client.rb")},
		program{language: "php", command: interpreted("php", "client.php")},
		program{language: "erlang", command: interpreted("escript", "client.escript")},
		program{language: "c", command: compiled("client", "cc", "-Wall", "-Wextra", "-Werror", "-o", "client", "client.c", "-lrabbitmq")},
		program{language: "perl", command: interpreted("perl", "client.pl")},
		program{language: "javascript", command: interpreted("node", "client.js"), stomp: true},
	)
}

func servers() []program {
	few := []program{{language: "python", command: interpreted(python, "server.py")}}
	if !*everyLanguage {
		return few
	}
	return append(few, program{language: "java", command: java("Server")})
}

// folder is the folder of the programs.
func folder(t *testing.T) string {
	t.Helper()
	return filepath.Join(rig.Root(t), "docs", "interop")
}

func interpreted(interpreter, file string) func(*testing.T) []string {
	return func(t *testing.T) []string {
		t.Helper()
		return []string{interpreter, filepath.Join(folder(t), file)}
	}
}

// compiled returns how to run a program that a compiler writes to the file of this name. The
// argument after -o is the file.
func compiled(file string, compiler ...string) func(*testing.T) []string {
	return func(t *testing.T) []string {
		t.Helper()
		binary := filepath.Join(t.TempDir(), file)
		args := slices.Clone(compiler)
		for i, arg := range args {
			if arg == "-o" || arg == "-d" {
				args[i+1] = binary
			}
		}
		compile := exec.CommandContext(t.Context(), args[0], args[1:]...)
		compile.Dir = folder(t)
		if out, err := compile.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return []string{binary}
	}
}

func java(class string) func(*testing.T) []string {
	compile := compiled("classes", "javac", "-Xlint:all", "-Werror", "-cp", javaLibraries, "-d", "classes", class+".java")
	return func(t *testing.T) []string {
		t.Helper()
		return []string{"java", "-XX:TieredStopAtLevel=1", "-cp", javaLibraries + ":" + compile(t)[0], class}
	}
}

// environment returns the variables that the programs read. Some libraries need UTF-8 as the
// locale's encoding, and some read a slash at the end of the URL as the virtual host "".
func environment(t *testing.T, r *rig.Rig) []string {
	t.Helper()
	env := []string{
		"LC_ALL=C.UTF-8", "PYTHONUNBUFFERED=1", "RPC_QUEUE=" + r.Queue.Name, "MANAGEMENT_URL=" + rig.ManagementURL(),
		"AMQP_URL=" + rig.Rewrite(t, r.URL, func(u *url.URL) { u.Path = strings.TrimSuffix(u.Path, "/") }),
	}
	if plugins, err := filepath.Glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins"); err == nil && len(plugins) > 0 {
		env = append(env, "ERL_LIBS="+plugins[0])
	}
	return env
}

// output is how a client ended.
type output struct {
	stdout, stderr string
	code           int
}

// stompURL is the variable of environment for a program that uses STOMP.
func stompURL(t *testing.T, r *rig.Rig) string {
	t.Helper()
	return "STOMP_URL=" + rig.Rewrite(t, r.URL, func(u *url.URL) { u.Scheme, u.Host, u.Path = "stomp", rig.Stomp(t), "" })
}

// caller calls the server of a rig with a client of docs/interop.
type caller struct {
	*rig.Rig
	program
	env, argv []string
}

// call makes one call.
func (c *caller) call(t *testing.T, timeoutMS, method, body string) output {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(rig.Patience(t), c.argv[0], append(slices.Clone(c.argv[1:]), method, body)...)
	cmd.Env = append(append(os.Environ(), c.env...), "RPC_TIMEOUT_MS="+timeoutMS)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return output{stderr: err.Error(), code: -1} // it did not start
	}
	return output{stdout.String(), strings.TrimSuffix(stderr.String(), "\n"), cmd.ProcessState.ExitCode()}
}
