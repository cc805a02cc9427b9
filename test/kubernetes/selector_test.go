package kubernetes

import (
	"slices"

	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// matches reports whether the labels select a pod of the overlay.
func (c *checker) matches(selector map[string]string) bool {
	return len(selector) > 0 && len(c.selected(&meta.LabelSelector{MatchLabels: selector})) > 0
}

// selected returns the pods of a selector; an invalid one selects none.
func (c *checker) selected(selector *meta.LabelSelector) []pod {
	matcher, err := meta.LabelSelectorAsSelector(selector)
	if err != nil {
		c.addf("%v", err)
		return nil
	}
	return slices.DeleteFunc(c.pods(), func(p pod) bool { return !matcher.Matches(labels.Set(p.labels)) })
}

// checkSelectors: every selector of the overlay selects pods, and every port is a port of them.
func (c *checker) checkSelectors() {
	for name, d := range c.deployments {
		if !c.matches(d.Spec.Selector.MatchLabels) {
			c.addf("the Deployment %s selects no pod", name)
		}
		for _, spread := range d.Spec.Template.Spec.TopologySpreadConstraints {
			if !c.matches(spread.LabelSelector.MatchLabels) {
				c.addf("a topologySpreadConstraint of %s selects no pod", name)
			}
		}
		if len(d.Spec.Template.Spec.TopologySpreadConstraints) == 0 {
			c.addf("the pods of %s are not spread", name)
		}
	}
	for name, s := range c.services {
		pods := c.selected(&meta.LabelSelector{MatchLabels: s.Spec.Selector})
		if len(pods) != 1 {
			c.addf("the Service %s selects %d workloads", name, len(pods))
			continue
		}
		for _, port := range s.Spec.Ports {
			if pods[0].ports[port.TargetPort.StrVal] == 0 {
				c.addf("the Service %s: %s has no port %s", name, pods[0].name, port.TargetPort.String())
			}
		}
	}
	c.checkBudgets()
	c.checkMonitors()
	if len(c.policies) > 0 {
		c.checkPolicies()
	}
}

// checkBudgets: every workload of several pods has a budget, which lets a node be drained.
func (c *checker) checkBudgets() {
	covered := make(map[string]bool)
	for name, b := range c.budgets {
		pods := c.selected(b.Spec.Selector)
		if len(pods) != 1 {
			c.addf("the PodDisruptionBudget %s selects %d workloads", name, len(pods))
		}
		if b.Spec.MaxUnavailable == nil || b.Spec.MaxUnavailable.IntValue() != 1 {
			c.addf("the PodDisruptionBudget %s does not let one pod go", name)
		}
		for _, p := range pods {
			covered[p.name] = true
		}
	}
	for _, p := range c.pods() {
		if p.replicas > 1 && !covered[p.name] {
			c.addf("%s has %d pods and no PodDisruptionBudget", p.name, p.replicas)
		}
	}
}

// checkMonitors: every ServiceMonitor selects a Service and one of its ports. The service has the
// native histograms that its monitor scrapes.
func (c *checker) checkMonitors() {
	for name, m := range c.monitors {
		matcher, err := meta.LabelSelectorAsSelector(&m.Spec.Selector)
		if err != nil {
			c.addf("%v", err)
			continue
		}
		ports := make(map[string]bool)
		for _, s := range c.services {
			for _, port := range s.Spec.Ports {
				ports[port.Name] = ports[port.Name] || matcher.Matches(labels.Set(s.Labels))
			}
		}
		for _, cluster := range c.clusters {
			for port := range cluster.ports() {
				ports[port] = ports[port] || matcher.Matches(labels.Set(cluster.labels()))
			}
		}
		if scrapes := m.Spec.ScrapeNativeHistograms; scrapes != nil && *scrapes {
			if at := slices.IndexFunc(c.pods(), func(p pod) bool { return p.name == name }); at < 0 || c.environment(c.pods()[at])["METRICS_NATIVE_HISTOGRAMS"] != "true" {
				c.addf("the ServiceMonitor %s scrapes native histograms, which the service does not have", name)
			}
		}
		for _, endpoint := range m.Spec.Endpoints {
			if !ports[endpoint.Port] {
				c.addf("the ServiceMonitor %s selects no Service with the port %s", name, endpoint.Port)
			}
			if paths, found := c.paths[name]; found && !slices.Contains(paths, endpoint.Path) {
				c.addf("the ServiceMonitor %s: the service does not serve %s", name, endpoint.Path)
			}
		}
	}
}

// checkPolicies: every policy selects pods, its ports are ports of the pods that accept the
// connection, and every pod has a policy with rules of its own.
func (c *checker) checkPolicies() {
	covered := make(map[string]bool)
	for name, p := range c.policies {
		pods := c.selected(&p.Spec.PodSelector)
		if len(pods) == 0 {
			c.addf("the NetworkPolicy %s selects no pod", name)
		}
		for _, one := range pods {
			covered[one.name] = covered[one.name] || len(p.Spec.PodSelector.MatchLabels) > 0
		}
		for _, rule := range p.Spec.Ingress {
			c.peers(name, rule.From)
			c.ports(name, pods, rule.Ports)
		}
		for _, rule := range p.Spec.Egress {
			if inside := c.peers(name, rule.To); len(inside) > 0 {
				c.ports(name, inside, rule.Ports)
			}
		}
	}
	for _, p := range c.pods() {
		if !covered[p.name] {
			c.addf("%s has no NetworkPolicy", p.name)
		}
	}
}

// peers returns the pods of the overlay among the peers.
func (c *checker) peers(name string, peers []networking.NetworkPolicyPeer) []pod {
	var inside []pod
	for _, peer := range peers {
		switch {
		case peer.NamespaceSelector != nil:
		case peer.PodSelector == nil:
			c.addf("the NetworkPolicy %s allows addresses", name)
		default:
			pods := c.selected(peer.PodSelector)
			if len(pods) == 0 {
				c.addf("a peer of the NetworkPolicy %s is no pod", name)
			}
			inside = append(inside, pods...)
		}
	}
	if len(peers) == 0 {
		c.addf("a rule of the NetworkPolicy %s allows every peer", name)
	}
	return inside
}

func (c *checker) ports(name string, pods []pod, ports []networking.NetworkPolicyPort) {
	for _, port := range ports {
		for _, p := range pods {
			found := false
			for known, number := range p.ports {
				found = found || port.Port.Type == intstr.String && port.Port.StrVal == known ||
					port.Port.Type == intstr.Int && port.Port.IntVal == number
			}
			if !found {
				c.addf("the NetworkPolicy %s: %s has no port %s", name, p.name, port.Port.String())
			}
		}
	}
	if len(ports) == 0 {
		c.addf("a rule of the NetworkPolicy %s allows every port", name)
	}
}
