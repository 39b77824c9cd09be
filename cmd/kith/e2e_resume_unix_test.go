//go:build unix

package main

import (
	"syscall"
	"testing"
	"time"
)

// TestI12_SleepAndResume stops a daemon for longer than its connections live, as a
// laptop that is closed, and wakes it: within ten seconds texts arrive in both
// directions.
func TestI12_SleepAndResume(t *testing.T) {
	if testing.Short() {
		t.Skip("a sleep of 40 s")
	}
	t.Parallel()
	n := newNetwork(t)
	a, b := n.pair("dora", "emil")
	if err := b.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Second)
	a.must("send", "emil", "while you slept")
	time.Sleep(20 * time.Second)
	if err := b.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	woke := time.Now()
	b.must("send", "dora", "I woke up", "--wait", "delivered", "--timeout", "30s")
	b.until("the text that waited is there", func() bool { return len(b.read("dora")) == 4 })
	took := time.Since(woke)
	t.Logf("%v after it woke up, texts had arrived in both directions", took.Round(time.Millisecond))
	if took > 10*time.Second {
		t.Error("that is more than 10 s")
	}
}
