package amqpx

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// marker is the secret in the URLs below. The digits at the start make a part of the secret
// look like a port.
const marker = "4711-hunter2-S3cr3t"

// misspelled returns lists of URLs with typical mistakes, each with the fault to report.
func misspelled() map[string]string {
	const (
		space  = "holds a space or a line break; URLs are separated by commas, as in " + listForm
		two    = "holds two URLs; separate them by commas, as in " + listForm
		listed = "holds a ; or |; URLs are separated by commas, as in " + listForm
		at     = "has an @ after a / or ?"
		port   = "has no number as its port"
		noHost = "has a host that is none"
		user   = "has a user without a password"
		query  = "has a query parameter that is none of cacertfile"
	)
	return map[string]string{
		"amqp://guest:$x@x#@h/":                          "the URL holds a #",
		"amqp://guest:$x#x@h:5672/":                      "the URL holds a #",
		"amqp://u:12#$x@h/":                              "the URL holds a #",
		"amqp://guest:$x/x@h:5672/":                      "the URL " + at,
		"amqp://guest:123/$x@h:5672/":                    "the URL " + at,
		"amqp://guest:1?$x@h:5672/":                      "the URL " + at,
		"amqp://u:12?$x@h/":                              "the URL " + at,
		"amqp://h/v?x=u:$x@k":                            "the URL " + at,
		"amqp://guest:$x%zz@h:5672/":                     "the URL " + faultForm,
		"amqp://guest:$x x@h:5672/":                      "the URL " + space,
		"amqp://guest:$x\nx@h:5672/":                     "the URL " + space,
		"amqp://u:$x@a/ amqp://u:$x@b/":                  "the URL " + space,
		"amqp://u:$x@a/\namqp://u:$x@b/":                 "the URL " + space,
		"amqp://h/,amqp://u:$x@a/\tamqp://u:$x@b/":       "the second URL " + space,
		"amqp://guest:12,$x@h:5672/":                     "the second URL " + faultScheme + "; each broker of a list has a whole URL",
		"amqp://guest:$x@a:5672,b:5672/":                 "the second URL " + faultScheme,
		"amqp://guest:12,amqp://$x@h:5672/":              "the second URL " + user,
		"amqp://guest:$x]@h:5672/":                       "the URL " + faultForm,
		"amqp://$x@h:5672/":                              "the URL " + user,
		"amqp://$x:@h:5672/":                             "the URL " + user,
		"amqp://guest:guest@h/?password=$x":              "the URL " + query,
		"amqp://h/?$x":                                   "the URL " + query,
		"amqp://h:5672/guest:$x":                         "the URL has a colon after the host",
		"amqp://guest:1234/$x:h":                         "the URL has a colon after the host",
		"amqp://h/;u:$x@k":                               "the URL " + listed,
		"amqp://a|u:$x@b":                                "the URL " + listed,
		"amqp://u:$x@a;u:$x@b":                           "the URL " + listed,
		"amqp://u:one@a//;amqp://u:$x@b//":               "the URL " + two,
		"amqp://a;amqp://u:$x@b//":                       "the URL " + two,
		"amqp://u:$x@amqp://h/":                          "the URL " + two,
		"amqps://u:$x@a/,AMQPS://b/,AMQP://u:$x@c/":      "the first URL begins with amqps:// and the third URL with amqp://, so the password could travel without TLS; begin every URL with amqps://",
		"amqp://u:$x@a/,amqps://u:$x@b/":                 "the first URL begins with amqp:// and the second URL with amqps://, so the password",
		"ampq://guest:$x@h:5672/":                        "the URL " + faultScheme,
		"amqp:guest:$x@h":                                "the URL " + faultScheme,
		"$x":                                             "the URL " + faultScheme,
		"\"amqp://guest:$x@h:5672/\"":                    "the URL is in quotes",
		"'amqp://guest:$x@h:5672/'":                      "the URL is in quotes",
		"\uFEFFamqp://guest:$x@h:5672/":                  "the list begins with a byte order mark",
		"a\x00m\x00q\x00p\x00$x":                         "the list is no UTF-8 text",
		"\xff\xfe$x":                                     "the list is no UTF-8 text",
		"amqp://guest:$x:h:5672/":                        "the URL " + noHost,
		"amqp://guest:$x/h:5672/":                        "the URL has a colon after the host",
		"amqp://guest:$x/h":                              "the URL " + port,
		"amqp://guest:$x":                                "the URL " + port,
		"amqp://guest=$x":                                "the URL " + noHost,
		"amqp://u:$x@h:99999/":                           "the URL has a port outside 1 to 65535",
		"amqp://u:$x@/":                                  "the URL names no host",
		"amqp://u:$x@[::1/":                              "the URL " + noHost,
		"amqp://u:$x@h/?heartbeat=$x":                    "the URL " + faultForm,
		"amqp://a/,amqp://b/,amqp://c/,amqp://u:$x@d:x/": "the fourth URL " + port,
		" , ": "no broker URL",
		"":    "no broker URL",
	}
}

func TestMisspelledURLsAreRefusedByPlaceAndNotQuoted(t *testing.T) {
	t.Parallel()
	for form, want := range misspelled() {
		list := strings.ReplaceAll(form, "$x", marker)
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			_, err := ParseURLs(list)
			_, clientErr := NewClient(list)
			_, serverErr := NewServer(list)
			if err == nil || clientErr == nil || serverErr == nil {
				t.Fatalf("accepted: %v, %v, %v", err, clientErr, serverErr)
			}
			if !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got  %q\nwant %q", err, want)
			}
			for _, err := range []error{err, clientErr, serverErr} {
				if showsMarker(err.Error()) {
					t.Errorf("the secret is shown: %v", err)
				}
			}
		})
	}
}

// showsMarker reports whether a text contains the marker or a part of it.
func showsMarker(text string) bool {
	text = regexp.MustCompile(`\b0x[0-9a-f]+`).ReplaceAllString(text, "") // an address may have any digits
	return strings.Contains(text, "hunter2") || strings.Contains(text, "S3cr3t") || strings.Contains(text, "4711")
}

func TestGoodURLs(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"amqp://h":                              "amqp://guest@h:5672",
		"amqps://h":                             "amqps://guest@h:5671",
		"AMQPS://u:$x@h/v":                      "amqps://u@h:5671",
		"amqps://u:$x@a/ ,AMQPS://u:$x@[::1]/,": "amqps://u@a:5671 amqps://u@[::1]:5671",
		"amqp://u:$x@h:1//":                     "amqp://u@h:1",
		"amqp://u:$x@x@h/%2F":                   "amqp://u@h:5672",
		"amqp://u%40b:%2F%3F%23%40$x@h/":        "amqp://u%40b@h:5672",
		"amqp://:$x@h/":                         "amqp://h:5672",
		"amqp://u:$x@bücher.example:1":          "amqp://u@b%C3%BCcher.example:1",
		"amqps://h/?auth_mechanism=external&heartbeat=5&connection_timeout=1&channel_max=9": "amqps://guest@h:5671",
		"amqp://u:$x@[fe80::1%25eth0]:1/": "amqp://u@[fe80::1%25eth0]:1",
	} {
		urls, err := ParseURLs(strings.ReplaceAll(list, "$x", marker))
		if err != nil {
			t.Errorf("%s is refused: %v", list, err)
			continue
		}
		wantSame(t, list, strings.Trim(fmt.Sprint(urls), "[]"), strings.Trim(want, "[]"))
	}
}

func TestBrokerURLShowsNoPassword(t *testing.T) {
	t.Parallel()
	urls, err := ParseURLs("amqps://app:" + marker + "@h:1/v?cacertfile=/" + marker)
	if err != nil {
		t.Fatal(err)
	}
	type holder struct{ inside BrokerURL }
	encoded, err := json.Marshal(urls)
	if err != nil {
		t.Fatal(err)
	}
	shown := fmt.Sprintf("%v %+v %#v %s %q %v %+v %#v %v", urls, urls, urls, urls[0], urls[0],
		holder{urls[0]}, holder{urls[0]}, BrokerURL{}, zap.Any("u", urls[0])) + string(encoded)
	if showsMarker(shown) || !strings.Contains(shown, "amqps://app@h:1") {
		t.Errorf("shown: %s", shown)
	}
	wantSame(t, "host", urls[0].Host(), "h")
	wantSame(t, "port", urls[0].Port(), 1)
	wantSame(t, "TLS", urls[0].TLS(), true)
}

// For a missing virtual host the broker's error quotes the name.
func TestVirtualHostThatMayBeASecretIsNotShown(t *testing.T) {
	t.Parallel()
	const text = "NOT_ALLOWED - vhost " + marker + " not found"
	for url, shows := range map[string]bool{
		"amqp://h/" + marker:               false, // there is no password before the host
		"amqp://u:p@h/" + marker + "%3Ax":  false,
		"amqp://u:p@h/u%40" + marker:       false,
		"amqp://u:p@h/" + marker:           true,
		"amqp://u:p@h/%2F" + marker + "-x": true,
	} {
		target := testTarget(url)
		name := marker
		if target.Hidden != nil {
			name = *target.Hidden
		}
		reason := strings.ReplaceAll(text, marker, name)
		err := transport.Classify(target, &amqp.Error{Code: amqp.NotAllowed, Reason: reason})
		if got := strings.Contains(err.Error(), "hunter2"); got != shows {
			t.Errorf("%s: %v", url, err)
		}
		if refused, ok := errors.AsType[*amqp.Error](error(err)); !ok || refused.Code != amqp.NotAllowed {
			t.Errorf("%s: the broker's error is not in %v", url, err)
		}
	}
}
