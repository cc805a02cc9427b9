package amqpx

import (
	"net"
	"slices"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// parseTarget returns the broker of a valid URL.
func parseTarget(url string) brokerTarget {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return brokerTarget{url: url, address: "?"}
	}
	return brokerTarget{
		url: url, address: net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), user: uri.Username, vhost: uri.Vhost,
		external: slices.ContainsFunc(uri.AuthMechanism, func(m string) bool { return strings.EqualFold(m, "external") }),
	}
}
