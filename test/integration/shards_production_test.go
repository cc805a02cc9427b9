//go:build integration

package integration

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestShardsInProduction: the permissions of rpc-definitions suffice for shards behind the request
// exchange, also for those that a server consumes without having declared them.
func TestShardsInProduction(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			const before, now = 5, 3 // shards
			p := inProduction(t)
			servers, clients := p.as(asServer), p.as(asClient)
			serve := func(shards int) *rig.Server {
				return servers.Serve(rig.Methods{"echo": echo}, amqpx.WithBatch(mode), amqpx.WithShards(shards),
					amqpx.WithReplyPrefix("{queue}.reply.{user}."))
			}
			ready := func(shards int) *amqpx.Client {
				return clients.Ready(amqpx.WithBatch(mode), amqpx.WithShards(shards), amqpx.WithExchange(exchange))
			}
			const calls = 64
			only := func(client *amqpx.Client) amqpx.ServerInfo {
				t.Helper()
				all, err := client.Servers(rig.Patience(t))
				if err != nil || len(all) != 1 {
					t.Fatalf("servers %+v, %v", all, err)
				}
				return all[0]
			}
			// reaches makes calls, one after the other and at once, with keys and without, and checks
			// that each shard of the client's number gets some.
			reaches := func(client *amqpx.Client, shards int) {
				t.Helper()
				earlier := slices.Concat(only(client).ShardRequests, make([]uint64, before))
				for i := range calls {
					// A server that is ready may still be declaring a shard.
					rig.Call(t, client, "echo", nil, amqpx.WithShardKey([]byte(strconv.Itoa(i))), amqpx.WaitForServer())
				}
				done := make(chan error, calls)
				for range calls {
					go func() {
						_, err := client.Call(rig.Patience(t), "echo", nil)
						done <- err
					}()
				}
				for range calls {
					if err := rig.Recv(t, done, "a response"); err != nil {
						t.Error(err)
					}
				}
				got := only(client).ShardRequests
				for i := range shards {
					if i >= len(got) || got[i] == earlier[i] {
						t.Errorf("shard %d of %d got no request: %v, %v before", i, shards, got, earlier)
					}
				}
			}

			old := serve(before)
			wide := ready(before)
			reaches(wide, before)
			server := serve(now)
			if err := old.Drain(); err != nil {
				t.Fatal(err)
			}
			reaches(wide, before) // the bindings of the retiring shards are still there
			narrow := ready(now)
			reaches(narrow, now)
			if got := only(narrow).Retiring; !slices.Equal(got, []int{3, 4}) {
				t.Errorf("retiring shards %v", got)
			}

			// No binding has the name of a shard that no server has declared.
			wider := ready(64)
			missing := 0
			for i := range calls {
				_, err := wider.Call(rig.Patience(t), "echo", nil, amqpx.WithShardKey([]byte(strconv.Itoa(i))))
				switch {
				case err == nil:
				case errors.Is(err, amqpx.ErrUnroutable) && amqpx.OutcomeOf(err) == amqpx.DidNotRun:
					missing++
				default:
					t.Errorf("call %d: %v", i, err)
				}
			}
			if missing == 0 {
				t.Error("each key has a shard")
			}
			for range calls {
				rig.Call(t, wider, "echo", nil)
			}
			if st := server.Stats(); st.DefaultExchange != 0 || st.ReplyRefused != 0 || st.Reconnects != 0 {
				t.Errorf("server %+v", st)
			}
			for _, client := range []*amqpx.Client{wide, narrow, wider} {
				if n := client.Stats().Reconnects; n != 0 {
					t.Errorf("%d reconnects of a client", n)
				}
			}
		})
	}
}
