package rig

import "net/http"

// Census is what a virtual host holds.
type Census struct {
	Connections, Channels, Queues int
}

// Census counts what a virtual host holds. The management API lags by a moment.
func (m *Management) Census(vhost string) Census {
	m.t.Helper()
	var connections, channels, queues []struct {
		Name string `json:"name"`
	}
	m.Do(http.MethodGet, nil, &connections, "vhosts", vhost, "connections")
	m.Do(http.MethodGet, nil, &channels, "vhosts", vhost, "channels")
	m.Do(http.MethodGet, nil, &queues, "queues", vhost)
	return Census{len(connections), len(channels), len(queues)}
}
