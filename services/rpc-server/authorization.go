package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/pkg/amqpx"
)

// authorizationVariable names the file of the rules.
const authorizationVariable = "RPC_AUTHORIZATION_FILE"

// authorizationPause is the time between two reads of the file of authorization rules. The
// content is compared, because the time of a change says nothing about a file that a symbolic
// link replaces, as in volumes of Kubernetes.
const authorizationPause = 2 * time.Second

// authorization holds the rules of RPC_AUTHORIZATION_FILE that are in force. Only watch reads
// the file after newAuthorization; rules is safe for concurrent use.
type authorization struct {
	path    string
	servers []string // the servers' users in the URLs of the brokers, which rules must not list
	logger  *zap.Logger

	inForce atomic.Pointer[amqpx.AuthorizationRules]
	content []byte // of the rules in force
	fault   string // the last reported fault of the file; empty: none
}

// newAuthorization reads the rules; nil if the settings name no file.
func newAuthorization(settings *Config, logger *zap.Logger) (*authorization, error) {
	if settings.AuthorizationFile == "" {
		return nil, nil //nolint:nilnil // nothing is not an error.
	}
	a := &authorization{path: settings.AuthorizationFile, servers: usersOf(settings.AMQP.URL.Reveal()), logger: logger}
	content, err := config.ReadFile(a.path)
	if err != nil {
		return nil, err
	}
	return a, a.use(content)
}

// usersOf returns the users in a list of URLs.
func usersOf(urls string) (users []string) {
	list, _ := amqpx.ParseURLs(urls) // the library reports an invalid list
	for _, broker := range list {
		if shown, err := url.Parse(broker.String()); err == nil && shown.User.Username() != "" {
			users = append(users, shown.User.Username())
		}
	}
	return users
}

// use puts the rules of a text into force.
func (a *authorization) use(content []byte) error {
	rules, err := amqpx.ParseAuthorizationRules(content)
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "amqpx: authorization rules: "))
	}
	for _, user := range a.servers {
		if rules.Lists(user) {
			return fmt.Errorf("lists %q, the user of this server: give callers other users, because this user can name any caller", user)
		}
	}
	a.content = content
	a.inForce.Store(rules)
	return nil
}

// option returns the middleware; nothing without a file. Place the middleware before the access
// log: a refused caller could fill the log.
func (a *authorization) option() []amqpx.ServerOption {
	if a == nil {
		return nil
	}
	return []amqpx.ServerOption{amqpx.WithMiddleware(amqpx.Authorize(a.inForce.Load, a.logger))}
}

// watch reads the file again and again until ctx ends, and returns a function that waits for
// the end of the last read.
func (a *authorization) watch(ctx context.Context) (wait func()) {
	if a == nil {
		return func() {}
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		pause := time.NewTicker(authorizationPause)
		defer pause.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
				a.readAgain()
			}
		}
	}()
	return func() { <-over }
}

// readAgain puts changed rules into force. While the file cannot be read or is invalid, the
// last valid rules stay in force, and each new fault is logged once.
func (a *authorization) readAgain() {
	content, err := config.ReadFile(a.path)
	changed := err == nil && !bytes.Equal(content, a.content)
	if changed {
		err = a.use(content)
	}
	switch {
	case err != nil:
		if text := err.Error(); text != a.fault {
			a.fault = text
			a.logger.Warn("the authorization rules could not be read again, so they stay as they were", zap.Error(err))
		}
	case changed:
		a.fault = ""
		a.logger.Info("authorization rules changed")
	default:
		a.fault = ""
	}
}
