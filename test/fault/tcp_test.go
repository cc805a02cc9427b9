//go:build fault

package fault

import (
	"slices"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
)

// both returns both sides of the broker.
func both() []side { return []side{client, server} }

// tcpScenarios returns the faults of the network: delays, and losses of connections.
func tcpScenarios() []scenario {
	const lasts = 20 * time.Second
	slow := []scenario{
		{
			name: "latency", about: "every packet of both sides 50 ms late for a while",
			fault: impaired(both(), impairment{latency: 50 * time.Millisecond}), short: true,
		},
		{
			name: "jitter", about: "every packet 20 ± 20 ms late",
			fault: impaired(both(), impairment{latency: 20 * time.Millisecond, jitter: 20 * time.Millisecond}),
		},
		{
			name: "bandwidth", about: "connections of 200 KB/s, bodies of 1 KiB",
			load:  with(func(l *load) { l.padding = 1 << 10 }),
			fault: impaired(both(), impairment{rate: 200_000}),
		},
		{
			name: "slicer", about: "the stream comes in slices of about 16 bytes",
			fault: impaired(both(), impairment{slice: 16}),
		},
	}
	for i := range slow {
		slow[i].rules = check.Rules{AllOK: true, IdempotentOK: true}
	}
	lossy := []scenario{
		{name: "reset-client", about: "RST to the clients' connections", fault: reset(client), short: true},
		{name: "reset-server", about: "RST to the servers' connections", fault: reset(server), short: true},
		{
			name: "reset-direct", about: "RST to the clients' connections, with direct reply-to",
			load: with(func(l *load) { l.direct = true }), fault: reset(client),
		},
		{name: "cut-client", about: "the clients' connections closed", fault: cut(0, client)},
		{name: "cut-server", about: "the servers' connections closed", fault: cut(0, server)},
		{name: "cut-both", about: "all connections closed at once", fault: cut(0, both()...), short: true},
		{name: "unreachable", about: "all connections closed, nobody gets through for 2 s", fault: cut(2*time.Second, both()...)},
		{
			name: "torn-client", about: "the clients' connections end after 20 kB, anywhere in a frame",
			fault: impaired([]side{client}, impairment{limit: 20_000}),
		},
		{
			name: "torn-server", about: "the servers' connections end after 20 kB, anywhere in a frame",
			fault: impaired([]side{server}, impairment{limit: 20_000}),
		},
	}
	for i := range lossy {
		lossy[i].rules = check.Rules{IdempotentOK: true}
	}
	all := slices.Concat(slow, lossy)
	for i := range all {
		all[i].lasts = lasts
	}
	return append(all, halfOpenScenarios()...)
}

// noticeWithin is the number of heartbeats within which a silent connection must be closed.
const noticeWithin = 2.5

// halfOpenScenarios lose data without a FIN, in one direction or both.
func halfOpenScenarios() []scenario {
	const lasts = 30 * time.Second
	var all []scenario
	for _, s := range []struct {
		name, about string
		at          side
		directions  []direction
		short       bool
	}{
		{"half-open-client", "the clients' data vanishes both ways, no FIN", client, []direction{up, down}, true},
		{"half-open-server", "the servers' data vanishes both ways, no FIN", server, []direction{up, down}, false},
		{"mute-to-client", "what the broker says to the clients vanishes", client, []direction{down}, false},
		{"mute-to-server", "what the broker says to the servers vanishes", server, []direction{down}, false},
		{"mute-from-client", "what the clients say vanishes", client, []direction{up}, false},
		{"mute-from-server", "what the servers say vanishes", server, []direction{up}, false},
	} {
		all = append(all, scenario{
			name: s.name, about: s.about, lasts: lasts, short: s.short, notice: noticeWithin,
			rules: check.Rules{IdempotentOK: true}, fault: vanish(s.at, s.directions...),
		})
	}
	return all
}

// impaired returns a fault that impairs both directions for a while.
func impaired(where []side, im impairment) func(*stage) {
	return func(s *stage) {
		for _, at := range where {
			for _, d := range []direction{up, down} {
				defer s.proxies[at].impair(d, im)()
			}
		}
		s.pause(3 * time.Second)
	}
}

// reset returns a fault with a RST as the response to the next packet of each connection.
func reset(at side) func(*stage) {
	return func(s *stage) {
		defer s.proxies[at].impair(down, impairment{reset: true})()
		s.pause(300 * time.Millisecond)
	}
}

// cut returns a fault with closed connections, and refused new connections for a while.
func cut(d time.Duration, where ...side) func(*stage) {
	return func(s *stage) {
		for _, at := range where {
			defer s.proxies[at].cut()()
		}
		if d > 0 {
			s.pause(d)
		}
	}
}

// vanish returns a fault with lost data until the connections have surely been abandoned. The
// processes must detect the loss themselves.
func vanish(at side, directions ...direction) func(*stage) {
	return func(s *stage) {
		for _, d := range directions {
			defer s.proxies[at].impair(d, impairment{vanish: true})()
		}
		s.silenced(at)
		s.wait(3 * s.sc.load.heartbeat)
	}
}
