package rig

// Census is what a virtual host holds.
type Census struct {
	Connections, Channels, Queues int
}

// Census counts what a virtual host holds. The management API lags by a moment.
func (m *Management) Census(vhost string) Census {
	m.t.Helper()
	return Census{
		Connections: len(m.names("vhosts", vhost, "connections")),
		Channels:    len(m.names("vhosts", vhost, "channels")),
		Queues:      len(m.names("queues", vhost)),
	}
}
