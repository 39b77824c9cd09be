package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/kith-im/kith/node/transport"
)

// TestMeteredBudget: --metered lowers what a preset allows, never raises it, and a
// figure of its own wins over both.
func TestMeteredBudget(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		preset, perDay string
		metered        bool
		want           transport.Budget
	}{
		{"laptop", "", false, transport.Budget{Memory: transport.UserMemory, Dials: 600}},
		{"laptop", "", true, transport.Budget{Memory: transport.UserMemory, Connections: 48, Dials: 60, Bytes: 200 * mib, Metered: true}},
		{"", "", true, transport.Budget{Memory: transport.UserMemory, Connections: 48, Dials: 60, Bytes: 200 * mib, Metered: true}},
		{"offline", "", true, transport.Budget{Memory: transport.UserMemory / 2, Connections: 32, Dials: 60, Bytes: 200 * mib, Metered: true}},
		{"laptop", "1GiB", true, transport.Budget{Memory: transport.UserMemory, Connections: 48, Dials: 60, Bytes: 1024 * mib, Metered: true}},
	} {
		d := &daemon{cfg: &config{}}
		d.cfg.preset.value, d.cfg.perDay.value, d.cfg.metered.value = test.preset, test.perDay, test.metered
		if err := d.budgetSettings(); err != nil {
			t.Fatal(err)
		}
		if got := d.meter.Budget(); got != test.want {
			t.Errorf("%q, %q, metered %v: %+v, want %+v", test.preset, test.perDay, test.metered, got, test.want)
		}
	}
}

// TestStatusShowsBudget: status says in a line what was used, and if the
// connection is metered.
func TestStatusShowsBudget(t *testing.T) {
	var out bytes.Buffer
	new(kith).writeStatus(&out, statusJSON{Budget: budgetJSON{Preset: "laptop", BytesToday: 3_200_000, BytesPerDay: 200_000_000, Metered: true}})
	if want := "laptop, 3.2 MB today of 200.0 MB, metered: what nobody waits for is slow"; !strings.Contains(out.String(), want) {
		t.Errorf("status prints\n%s", out.String())
	}
	out.Reset()
	new(kith).writeStatus(&out, statusJSON{Budget: budgetJSON{Preset: "laptop", BytesToday: 2_600_000, BytesPerDay: 1_000_000}})
	if want := "2.6 MB today of 1.0 MB, used up: until midnight UTC"; !strings.Contains(out.String(), want) {
		t.Errorf("status prints\n%s", out.String())
	}
}
