// Command rpc-certificates makes the certificates of the Compose overlay tls.
//
//	rpc-certificates BROKER-FOLDER SERVICES-FOLDER NAME…
//
// It writes an authority's certificate (ca.pem), and a certificate with its key (cert.pem, key.pem),
// into each of the two folders: the broker's for the host names NAME, and the services' client
// certificate. The authority's key is not kept. If the folders have certificates that last for
// another month, it changes nothing.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"rabbitmq-rpc/internal/lifecycle"
)

func main() {
	os.Exit(lifecycle.Finish(os.Stderr, "rpc-certificates", run(os.Args[1:], os.Stdout)))
}

func run(args []string, stdout io.Writer) error {
	const least = 3
	if len(args) < least {
		return lifecycle.ConfigError(errors.New("want the arguments BROKER-FOLDER SERVICES-FOLDER NAME…"))
	}
	broker, services, names := args[0], args[1], args[2:]
	if lasts(broker, names) && lasts(services, nil) && sameAuthority(broker, services) {
		_, err := fmt.Fprintln(stdout, "the certificates are still good")
		return err
	}
	if err := renew(broker, services, names); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stdout, "new certificates were made")
	return err
}
