// Command rpc-definitions makes the users of the Compose overlay production, with random passwords.
//
//	rpc-definitions -folder FOLDER [-queue NAME] [-vhost NAME] [-broker URL,…] [-clients NAME,…] [-processes N]
//		[-streams] [-call-all NAME,…] [-rotate]
//
// The command writes into folders below FOLDER, a folder for each reader:
//
//	broker/definitions.json     for RabbitMQ's load_definitions: the users with hashes of their
//	                            passwords, permissions, limits and an operator policy
//	server/amqp-url             for AMQP_URL_FILE of rpc-server
//	server/authorization.json   for RPC_AUTHORIZATION_FILE: the clients may call every method
//	operator/amqp-url           for people and monitoring
//	NAME/amqp-url               for AMQP_URL_FILE of each client
//
// The name of a folder is the name of its user. Passwords that exist stay, unless -rotate is set;
// files with current content are not written. No password is printed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"rabbitmq-rpc/internal/lifecycle"
)

func main() {
	os.Exit(lifecycle.Finish(os.Stderr, "rpc-definitions", run(os.Args[1:], os.Stdout)))
}

// settings are the arguments of the program.
type settings struct {
	folder, queue, vhost string
	// brokers are the URLs of the broker's nodes, without a user.
	brokers []*url.URL
	// clients are the users that call.
	clients []string
	// processes is the number of processes of each user for which the limits have room.
	processes int
	// streams allows streams, to the server and all clients; callAll are the clients that may call
	// all servers at once.
	streams bool
	callAll []string
	rotate  bool
}

func run(args []string, stdout io.Writer) error {
	s, err := parse(args)
	if err != nil {
		return lifecycle.ConfigError(err)
	}
	changed, err := s.write()
	if err != nil {
		return err
	}
	text := "the users are as they should be"
	if changed {
		text = "users and definitions were written"
	}
	_, err = fmt.Fprintln(stdout, text)
	return err
}

// parse returns the settings, or an error that quotes no URL.
func parse(args []string) (*settings, error) {
	const processes = 32
	s := &settings{}
	var brokers, clients, callAll string
	flags := flag.NewFlagSet("rpc-definitions", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&s.folder, "folder", "", "where to write")
	flags.StringVar(&s.queue, "queue", "rpc_queue", "the request queue")
	flags.StringVar(&s.vhost, "vhost", "/", "the virtual host")
	flags.StringVar(&brokers, "broker", "amqp://rabbitmq:5672", "the broker's URLs without a user, separated by commas")
	flags.StringVar(&clients, "clients", "client", "the users that call, separated by commas")
	flags.IntVar(&s.processes, "processes", processes, "how many processes of each user the limits have room for")
	flags.BoolVar(&s.streams, "streams", false, "allow streams")
	flags.StringVar(&callAll, "call-all", "", "the clients that may call all servers at once, separated by commas")
	flags.BoolVar(&s.rotate, "rotate", false, "make new passwords")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	s.clients = strings.Split(clients, ",")
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unknown arguments %q", flags.Args())
	case s.folder == "":
		return nil, errors.New("-folder is needed")
	case s.queue == "" || s.vhost == "":
		return nil, errors.New("-queue and -vhost must not be empty")
	case s.processes < 1:
		return nil, fmt.Errorf("-processes: %d is less than 1", s.processes)
	}
	if err := checkNames(s.clients); err != nil {
		return nil, err
	}
	if callAll != "" {
		s.callAll = strings.Split(callAll, ",")
	}
	for _, name := range s.callAll {
		if !slices.Contains(s.clients, name) {
			return nil, fmt.Errorf("-call-all: %q is none of -clients", name)
		}
	}
	for place, text := range strings.Split(brokers, ",") {
		broker, err := url.Parse(text)
		if err != nil || broker.Scheme != "amqp" && broker.Scheme != "amqps" || broker.Host == "" || broker.User != nil || strings.Trim(broker.Path, "/") != "" {
			return nil, fmt.Errorf("-broker: number %d is not a URL of the form amqp://host:port", place+1)
		}
		s.brokers = append(s.brokers, broker)
	}
	return s, nil
}

// checkNames checks the names of the clients, which are names of folders and of users, and parts
// of the names of queues and of patterns.
func checkNames(clients []string) error {
	taken := []string{brokerFolder, serverUser, operatorUser, guestUser}
	for _, name := range clients {
		if !regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`).MatchString(name) {
			return fmt.Errorf("-clients: %q is not a name of lower-case letters, digits, - and _", name)
		}
		if slices.Contains(taken, name) {
			return fmt.Errorf("-clients: the name %q is taken", name)
		}
		taken = append(taken, name)
	}
	return nil
}
