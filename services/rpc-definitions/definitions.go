package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"regexp"
	"slices"
)

// The users that always exist. The user guest has no password and no permissions, so a login as
// guest fails, also on the data of a broker that had the user before.
const (
	serverUser   = "server"
	operatorUser = "operator"
	guestUser    = "guest"
)

// nothing is the pattern that matches no name.
const nothing = "^$"

const (
	// The connections and channels that one server, and one client, opens (docs/operations.md). The limits have room for twice as many, because the broker
	// notices the end of a connection late.
	connectionsOfServer, channelsOfServer = 4, 10
	connectionsOfClient, channelsOfClient = 2, 5
	// sharedQueues are the request queue and the queues beside it, with room for shards.
	sharedQueues = 64
	roomFor      = 2
)

const (
	// replyExpires is the time in ms after which an unused reply queue is deleted, the same as
	// amqpx clients ask for.
	replyExpires = 300_000
	// replyLength and replyBytes bound a reply queue that nobody reads. A client has at most
	// 65,536 calls, and 256 MiB of requests, in flight.
	replyLength = 131_072
	replyBytes  = 268_435_456
)

// definitions are RabbitMQ's, in the format of its export.
type definitions struct {
	Users       []user       `json:"users"`
	Vhosts      []vhost      `json:"vhosts"`
	Permissions []permission `json:"permissions"`
	Parameters  []parameter  `json:"parameters"`
}

type user struct {
	Name             string         `json:"name"`
	PasswordHash     string         `json:"password_hash"`
	HashingAlgorithm string         `json:"hashing_algorithm"`
	Tags             string         `json:"tags"`
	Limits           map[string]int `json:"limits"`
}

type vhost struct {
	Name string `json:"name"`
}

type permission struct {
	User      string `json:"user"`
	Vhost     string `json:"vhost"`
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

type parameter struct {
	Vhost     string `json:"vhost"`
	Component string `json:"component"`
	Name      string `json:"name"`
	Value     any    `json:"value"`
}

// define returns the definitions. The hash of each user's password comes from hashOf.
func (s *settings) define(hashOf func(user string) string) ([]byte, error) {
	d := definitions{Vhosts: []vhost{{s.vhost}}}
	add := func(name, tags string, connections, channels int) {
		if s.streams {
			channels++
		}
		d.Users = append(d.Users, user{
			Name: name, PasswordHash: hashOf(name), HashingAlgorithm: "rabbit_password_hashing_sha256", Tags: tags,
			Limits: map[string]int{"max-connections": roomFor * connections * s.processes, "max-channels": roomFor * channels * s.processes},
		})
		d.Permissions = append(d.Permissions, s.permission(name))
	}
	add(serverUser, "", connectionsOfServer, channelsOfServer)
	add(operatorUser, "monitoring", connectionsOfClient, channelsOfClient)
	for _, client := range s.clients {
		add(client, "", connectionsOfClient, channelsOfClient)
	}
	d.Users = append(d.Users, user{
		Name: guestUser, HashingAlgorithm: "rabbit_password_hashing_sha256",
		Limits: map[string]int{"max-connections": 0, "max-channels": 0},
	})
	d.Permissions = append(d.Permissions, permission{User: guestUser, Vhost: s.vhost, Configure: nothing, Write: nothing, Read: nothing})

	connections := 0
	for _, u := range d.Users {
		connections += u.Limits["max-connections"]
	}
	// A server has a queue of the control plane, and a client a reply queue. With streams each process
	// has a queue for frames too. With calls to all servers each server, and each client that makes
	// such calls, has a further queue.
	each := len(s.clients) + 2
	if s.streams {
		each *= 2
	}
	if len(s.callAll) > 0 {
		each += 1 + len(s.callAll)
	}
	queues := sharedQueues + roomFor*s.processes*each
	d.Parameters = []parameter{
		{s.vhost, "vhost-limits", "limits", map[string]int{"max-connections": connections, "max-queues": queues}},
		{s.vhost, "operator_policy", "reply-queues", map[string]any{
			"pattern": "^" + regexp.QuoteMeta(s.queue) + `\.reply\.`, "apply-to": "queues", "priority": 0,
			"definition": map[string]int{"expires": replyExpires, "max-length": replyLength, "max-length-bytes": replyBytes},
		}},
	}
	text, err := json.MarshalIndent(d, "", "  ")
	return append(text, '\n'), err
}

// permission returns the permissions of a user; docs/security.md explains them.
func (s *settings) permission(name string) permission {
	q := regexp.QuoteMeta(s.queue)
	p := permission{User: name, Vhost: s.vhost}
	own := q + `\.reply\.` + regexp.QuoteMeta(name) + `\..+`
	switch name {
	case serverUser:
		beside, bound := `rpc|control(\..+)?`, `\.control\..+`
		if s.streams {
			beside, bound = `rpc|streams|s\..+|control(\..+)?`, `\.(streams|s\..+|control\..+)`
		}
		p.Configure = `^` + q + `(\.[0-9]+)?(\.(batch|retry|dead|` + beside + `))?$`
		p.Write = `^(amq\.default|` + q + `(\.[0-9]+)?(\.batch)?|` + q + bound + `)$`
		p.Read = `^` + q + `(\.[0-9]+)?(\.(batch|retry|` + beside + `))?$`
	case operatorUser:
		p.Configure, p.Write, p.Read = nothing, nothing, `^`+q+`\.dead$`
	default:
		p.Configure = `^` + own + `$`
		p.Write = `^` + q + `\.(rpc|control)$`
		if slices.Contains(s.callAll, name) {
			p.Write = `^` + q + `\.(rpc|control|control\.all)$`
		}
		p.Read = `^` + own + `$`
	}
	return p
}

// saltBytes is the size of the salt before a hash of rabbit_password_hashing_sha256.
const saltBytes = 4

// newHash returns the hash of a password with a new salt.
func newHash(password string) string {
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails
	return base64.StdEncoding.EncodeToString(salted(salt, password))
}

// isHashOf reports whether the hash is of the password.
func isHashOf(hash, password string) bool {
	raw, err := base64.StdEncoding.DecodeString(hash)
	return err == nil && len(raw) > saltBytes && slices.Equal(raw, salted(raw[:saltBytes], password))
}

func salted(salt []byte, password string) []byte {
	digest := sha256.Sum256(append(slices.Clone(salt), password...))
	return append(slices.Clone(salt), digest[:]...)
}
