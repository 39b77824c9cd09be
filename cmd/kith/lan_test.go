package main

import (
	"strings"
	"testing"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// TestLANSentence: a community node has no contacts to look for, and is not said to.
func TestLANSentence(t *testing.T) {
	on := &apiv1.Lan{On: true, Networks: 2, Devices: 1, Nodes: 3}
	for _, test := range []struct {
		lan  *apiv1.Lan
		role string
		want string
	}{
		{on, "user", "On, at 2 local addresses: 1 device of contacts and 3 community nodes heard."},
		{on, "community", "On, at 2 local addresses: users there who switch it on too find this node."},
		{&apiv1.Lan{On: true}, "user", "On: contacts on the same network who switch it on too are looked for from now on."},
		{&apiv1.Lan{On: true}, "community", "On: users on the same network who switch it on too find this node from now on."},
		{&apiv1.Lan{On: true, Problem: "this machine is on no local network"}, "community", "On, but this machine is on no local network."},
		{&apiv1.Lan{}, "user", "Off: contacts on the same network do not find you that way. Switch it on with: kith lan on"},
		{&apiv1.Lan{}, "community", "Off: users on the same network do not find this node that way. Switch it on with: kith lan on"},
	} {
		var out strings.Builder
		(&kith{stdout: &out}).printLAN(test.lan, test.role)
		if out.String() != test.want+"\n" {
			t.Errorf("%s: %q, want %q", test.role, out.String(), test.want)
		}
	}
}

// TestLANOfACommunityNode: the command knows whose daemon it switches.
func TestLANOfACommunityNode(t *testing.T) {
	n := newNetwork(t)
	for args, want := range map[string]string{"lan": "do not find this node", "lan off": "do not find this node"} {
		if out := n.node.must(strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("kith %s: %q, want %q", args, out, want)
		}
	}
}
