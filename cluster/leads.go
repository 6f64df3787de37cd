package cluster

import "github.com/ostraka/ostraka/disk"

// Leads reports whether this process leads the control plane, as far as it knows. What only one process is to do
// may follow it, if it does no harm that two do it for a moment.
func (k *Control) Leads() bool { return k.leader() != nil }

// Leader returns the node that leads, as far as is known here; zero if it is not known, or the process is alone.
func (k *Control) Leader() disk.ID {
	if k.leader() != nil {
		return k.self()
	}
	return k.leaderNode()
}
