package process

import (
	"slices"
	"testing"

	"rabbitmq-rpc/bench/contender"
)

func TestProcessorsOfSetup(t *testing.T) {
	t.Parallel()
	if got := (Setup{}).environment(); got != nil {
		t.Errorf("without a number: %v", got)
	}
	if got := (Setup{Procs: 1}).environment(); !slices.Equal(got, []string{"GOMAXPROCS=1"}) {
		t.Errorf("one processor: %v", got)
	}
}

func TestNodesOfSetup(t *testing.T) {
	t.Parallel()
	remote := Setup{ServerURL: "b", ClientURL: "c"}
	spread := Setup{Env: contender.Environment{Spread: []string{"a", "b", "c"}}}
	for _, tt := range []struct {
		name   string
		setup  Setup
		role   contender.Role
		number int
		want   string
	}{
		{"one node", Setup{}, contender.RoleServer, 1, ""},
		{"remote server", remote, contender.RoleServer, 1, "b"},
		{"remote client", remote, contender.RoleClient, 0, "c"},
		{"broker", remote, contender.RoleBroker, 0, ""},
		{"first spread server", spread, contender.RoleServer, 0, "a"},
		{"fifth spread server", spread, contender.RoleServer, 4, "b"},
		{"client of a spread queue", spread, contender.RoleClient, 0, ""},
	} {
		if got := tt.setup.node(tt.role, tt.number); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A spread queue is declared shard by shard, each at its node; other queues once, or by the servers.
func TestDeclarations(t *testing.T) {
	t.Parallel()
	env := contender.Environment{URL: "u", Shards: 4}
	if got := (Setup{}).declarations(env); len(got) != 0 {
		t.Errorf("declared by the servers: %+v", got)
	}
	if got := (Setup{Declared: true}).declarations(env); len(got) != 1 || got[0].URL != "u" || got[0].Shards != 4 {
		t.Errorf("declared before the servers: %+v", got)
	}
	env.Spread = []string{"a", "b", "c"}
	got := (Setup{Env: env}).declarations(env)
	if len(got) != env.Shards {
		t.Fatalf("a spread queue of %d shards: %+v", env.Shards, got)
	}
	for i, want := range []string{"a", "b", "c", "a"} {
		if got[i].URL != want || got[i].Shards != i+1 {
			t.Errorf("shard %d: declared at %s by a server with %d shards, want %s and %d", i, got[i].URL, got[i].Shards, want, i+1)
		}
	}
}
