package main

import (
	"encoding/json"
	"os"
	"testing"
)

// TestDemoOnce is the demo as a newcomer runs it: five processes on real
// sockets, with one killed in the middle.
func TestDemoOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Setenv("KITH_TEST_MAIN", "1") // the demo starts this binary again
	t.Setenv("TMPDIR", shortDir(t))
	code, stdout, stderr := cli(t, "", "demo", "--once", "--json")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var r demoReport
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatal(err)
	}
	if !r.OK || r.Processes != demoNodes+2 || len(r.Directions) != 2 {
		t.Errorf("the report is %s", stdout)
	}
	for _, x := range r.Directions {
		if x.Sent < demoTalk+demoAway+demoApart || x.Received != x.Sent || x.Delivered != x.Sent || x.Lost+x.Duplicate+x.OutOfOrder != 0 || x.Median <= 0 {
			t.Errorf("%s to %s: %+v", x.From, x.To, x)
		}
	}
	if len(r.Apart) != 2 {
		t.Fatalf("the report is %s", stdout)
	}
	for i, a := range r.Apart {
		if a.From != r.Directions[i].From || a.Texts != demoApart || a.Held < 2 || a.Of != demoNodes || a.ReadAfter <= 0 {
			t.Errorf("never there together: %+v", a)
		}
	}
	if entries, err := os.ReadDir(os.TempDir()); err != nil || len(entries) != 0 {
		t.Errorf("the demo left %v, %v behind", entries, err)
	}
}
