// Package placement asks RabbitMQ's management API on which nodes of a cluster the queues and
// connections of a service are.
package placement

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Placement says which node holds what.
type Placement struct {
	// Queues are the request queue, its companions, and the reply queues of the clients.
	Queues []Queue `json:"queues"`
	// Connections counts the connections by name and node.
	Connections []Connections `json:"connections"`
}

// Queue is one queue.
type Queue struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// Node is the node of the queue, or of the leader of a quorum queue; "" while it has none.
	Node string `json:"node"`
	// Members are the nodes of a quorum queue, Online those that run.
	Members []string `json:"members,omitempty"`
	Online  []string `json:"online,omitempty"`
}

// Connections counts the connections with the same name to one node.
type Connections struct {
	Name  string `json:"name"`
	Node  string `json:"node"`
	Count int    `json:"count"`
}

// Line is one line of a placement for people.
type Line struct{ Name, Where string }

// Lines returns the placement for people. Of the reply queues it counts those of each node.
func (p *Placement) Lines() []Line {
	var lines []Line
	replies := make(map[string]int)
	for _, q := range p.Queues {
		if strings.Contains(q.Name, ".reply.") {
			replies[q.Type+" on "+cmp.Or(q.Node, "no node")]++
			continue
		}
		if strings.Contains(q.Name, ".control.") { // on the node of its server's connection
			continue
		}
		where := q.Type + " on " + cmp.Or(q.Node, "no node")
		if q.Type == "quorum" {
			where = fmt.Sprintf("quorum, leader %s, %d of %d members online", cmp.Or(q.Node, "none"), len(q.Online), len(q.Members))
		}
		lines = append(lines, Line{"queue " + q.Name, where})
	}
	for _, where := range slices.Sorted(maps.Keys(replies)) {
		lines = append(lines, Line{"reply queues", fmt.Sprintf("%d %s", replies[where], where)})
	}
	for _, c := range p.Connections {
		lines = append(lines, Line{"connection " + c.Name, fmt.Sprintf("%d on %s", c.Count, c.Node)})
	}
	return lines
}

// maxResponse bounds the size of a response, in bytes.
const maxResponse = 64 << 20

// Check reports whether a list of URLs can be used by Ask. An empty list can.
func Check(urls string) error {
	if urls == "" {
		return nil
	}
	for text := range strings.SplitSeq(urls, ",") {
		if u, err := url.Parse(strings.TrimSpace(text)); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return errors.New("a URL is not of the form http://user:password@host:15672")
		}
	}
	return nil
}

// Ask asks the first management API that responds. urls is a comma-separated list of the nodes'
// URLs with user and password. The user needs the tag management for the queues and its own
// connections, and the tag monitoring for the connections of others. An error never shows a
// password.
func Ask(ctx context.Context, urls, vhost, queue string) (*Placement, error) {
	var faults []error
	for text := range strings.SplitSeq(urls, ",") {
		base, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			return nil, Check(text)
		}
		p, err := askOne(ctx, base, vhost, queue)
		if err == nil {
			return p, nil
		}
		faults = append(faults, fmt.Errorf("the management API at %s: %w", base.Host, err))
	}
	return nil, errors.Join(faults...)
}

func askOne(ctx context.Context, base *url.URL, vhost, queue string) (*Placement, error) {
	var queues []struct {
		Queue

		Leader string `json:"leader"`
	}
	if err := get(ctx, base, "/api/queues/"+url.PathEscape(vhost), "name,type,node,leader,members,online", &queues); err != nil {
		return nil, err
	}
	var connections []struct {
		Node       string `json:"node"`
		Vhost      string `json:"vhost"`
		Properties struct {
			Name string `json:"connection_name"`
		} `json:"client_properties"`
	}
	if err := get(ctx, base, "/api/connections", "node,vhost,client_properties.connection_name", &connections); err != nil {
		return nil, err
	}
	p := &Placement{Queues: []Queue{}, Connections: []Connections{}}
	for _, q := range queues {
		if q.Name == queue || strings.HasPrefix(q.Name, queue+".") {
			q.Node = cmp.Or(q.Leader, q.Node)
			slices.Sort(q.Members)
			slices.Sort(q.Online)
			p.Queues = append(p.Queues, q.Queue)
		}
	}
	slices.SortFunc(p.Queues, func(a, b Queue) int { return strings.Compare(a.Name, b.Name) })
	counts := make(map[Connections]int)
	for _, c := range connections {
		if c.Vhost == vhost {
			counts[Connections{Name: c.Properties.Name, Node: c.Node}]++
		}
	}
	for c, n := range counts {
		c.Count = n
		p.Connections = append(p.Connections, c)
	}
	slices.SortFunc(p.Connections, func(a, b Connections) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Node, b.Node))
	})
	return p, nil
}

// get decodes the response to one question.
func get(ctx context.Context, base *url.URL, path, columns string, into any) error {
	u := *base
	u.User = nil
	target := strings.TrimSuffix(u.String(), "/") + path + "?columns=" + columns
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return errors.New("the URL cannot be used")
	}
	if base.User != nil {
		password, _ := base.User.Password()
		req.SetBasicAuth(base.User.Username(), password)
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL
		}
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return json.NewDecoder(io.LimitReader(response.Body, maxResponse)).Decode(into)
}
