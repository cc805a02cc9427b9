package placement_test

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"rabbitmq-rpc/internal/placement"
)

// api is the management API of a node.
func api(t *testing.T) *httptest.Server {
	t.Helper()
	answers := map[string]string{
		"/api/queues/a%2Fb": `[
			{"name":"q.reply.1","type":"classic","node":"rabbit@b"},
			{"name":"q","type":"quorum","node":"rabbit@a","leader":"rabbit@c","members":["rabbit@c","rabbit@a"],"online":["rabbit@c"]},
			{"name":"quiet","type":"classic","node":"rabbit@b"}]`,
		"/api/connections": `[
			{"node":"rabbit@b","vhost":"a/b","client_properties":{"connection_name":"s server consume"}},
			{"node":"rabbit@b","vhost":"a/b","client_properties":{"connection_name":"s server consume"}},
			{"node":"rabbit@a","vhost":"a/b","client_properties":{"connection_name":"c client consume"}},
			{"node":"rabbit@a","vhost":"other","client_properties":{}}]`,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(answers[r.URL.EscapedPath()]))
	}))
	t.Cleanup(s.Close)
	return s
}

func TestPlacement(t *testing.T) {
	t.Parallel()
	with := func(user string) string { return strings.Replace(api(t).URL, "http://", "http://"+user+"@", 1) }
	got, err := placement.Ask(t.Context(), "http://127.0.0.1:1,"+with("u:secret")+"/", "a/b", "q")
	if err != nil {
		t.Fatal(err)
	}
	want := &placement.Placement{
		Queues: []placement.Queue{
			{Name: "q", Type: "quorum", Node: "rabbit@c", Members: []string{"rabbit@a", "rabbit@c"}, Online: []string{"rabbit@c"}},
			{Name: "q.reply.1", Type: "classic", Node: "rabbit@b"},
		},
		Connections: []placement.Connections{{"c client consume", "rabbit@a", 1}, {"s server consume", "rabbit@b", 2}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNoPlacement(t *testing.T) {
	t.Parallel()
	for urls, want := range map[string]string{
		strings.Replace(api(t).URL, "http://", "http://u:wrong@", 1): "401 Unauthorized",
		"http://u:hunter2@127.0.0.1:1":                               "connection refused",
		"http://u:hunter2@h:port":                                    "not of the form",
	} {
		_, err := placement.Ask(t.Context(), urls, "/", "q")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %s", urls, err, want)
		}
	}
}
