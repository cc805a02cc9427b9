package contender

import _ "embed"

// python measures a pair of Python programs with pika.
type python struct{}

func (python) Settings() string {
	return "Python with pika's BlockingConnection, as its tutorials have it: exclusive reply queue read without acks, prefetch 1, a request acked after its response, no publisher confirms, transient messages, queue not durable; one call at a time, so it has no figures for more callers"
}

//go:embed python/process.py
var pythonProcess string

//go:embed python/server.py
var pythonServer string

//go:embed python/client.py
var pythonClient string

// Program implements foreign with the distribution's interpreter, for which pika is installed.
func (python) Program(r Role) []string {
	script := pythonServer
	if r == RoleClient {
		script = pythonClient
	}
	return []string{"/usr/bin/python3", "-c", pythonProcess + script}
}
