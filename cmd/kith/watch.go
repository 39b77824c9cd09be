package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

const (
	pingEvery = time.Second
	// lookEvery is how often a command that waits for a change looks by itself.
	lookEvery = time.Second
	// ackWait bounds one acknowledgement, and with it the end of kith watch.
	ackWait = 2 * time.Second
)

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *kith) watchCmd() *cobra.Command {
	var cursor, ack, from string
	var count int
	c := &cobra.Command{
		Use:   "watch [--cursor NAME] [--ack auto|manual] [--from now|start] [-n N]",
		Short: "Show events as they happen; with a cursor nothing is ever skipped",
		Long: `Show events as they happen. With --cursor the daemon remembers which events
were acknowledged: the next watch with the same cursor continues after the last
of them, whatever happened in between.

--ack auto    acknowledges each event once it was written to the standard output
--ack manual  acknowledges what is written to the standard input: the id of an
              event, one per line, stands for it and all before it; or run
              kith watch ack NAME ID`,
	}
	c.Flags().StringVar(&cursor, "cursor", "", "the `NAME` of the cursor to continue from")
	c.Flags().StringVar(&ack, "ack", "auto", "auto or manual")
	c.Flags().StringVar(&from, "from", "now", "where a new cursor begins: now or start")
	c.Flags().IntVarP(&count, "count", "n", 0, "end after `N` events")
	k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		if ack != "auto" && ack != "manual" {
			return usagef("use one of the two", "--ack takes auto or manual")
		}
		if ack == "manual" && cursor == "" {
			return usagef("name it with --cursor NAME", "only events of a cursor can be acknowledged")
		}
		if count < 0 {
			return usagef("for example -n 1", "the count is negative")
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		err = k.watch(ctx, client, &apiv1.WatchEventsRequest{Cursor: cursor, From: from}, ack == "auto", count)
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return nil // Ctrl-C is how one ends it
		}
		return err
	})
	c.AddCommand(k.command(&cobra.Command{
		Use:   "ack NAME ID",
		Short: "Acknowledge the events of a cursor up to an id",
	}, 2, 2, func(ctx context.Context, args []string) error {
		id, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return usagef("take it from kith watch --json", "%q is no id of an event", clean(args[1]))
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		if _, err := client.AckEvents(ctx, &apiv1.AckEventsRequest{Cursor: args[0], Id: id}); err != nil {
			return err
		}
		k.print(struct {
			Cursor string `json:"cursor"`
			Acked  uint64 `json:"acked"`
		}{args[0], id}, func(io.Writer) {})
		return nil
	}))
	return c
}

var errEnough = errors.New("enough events")

// watch prints events and acknowledges them: after they were written, never
// before, so that an event lost with this process comes again.
func (k *kith) watch(ctx context.Context, client *api.Client, req *apiv1.WatchEventsRequest, auto bool, count int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	acks := newAcker(client, req.Cursor)
	switch {
	case req.Cursor == "":
	case auto:
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			acks.run(ctx, cancel)
		}()
		defer func() {
			cancel(nil)
			<-ended
		}()
	default:
		go acks.read(ctx, k.stdin, cancel) // a read of the terminal can not be called off
	}
	n := 0
	err := client.WatchEvents(ctx, req, func(e *apiv1.Event) error {
		if err := k.printEvent(e); err != nil {
			return err
		}
		if auto && req.Cursor != "" {
			acks.set(e.Id)
		}
		if n++; n == count {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// acker acknowledges the events of a cursor, the newest at a time.
type acker struct {
	client *api.Client
	cursor string
	todo   chan uint64 // holds the highest id not yet acknowledged
}

func newAcker(client *api.Client, cursor string) *acker {
	return &acker{client: client, cursor: cursor, todo: make(chan uint64, 1)}
}

// set replaces the id that waits to be acknowledged.
func (a *acker) set(id uint64) {
	select {
	case <-a.todo:
	default:
	}
	a.todo <- id
}

// run acknowledges until ctx ends, and then what is left.
func (a *acker) run(ctx context.Context, fail context.CancelCauseFunc) {
	for {
		select {
		case id := <-a.todo:
			if err := a.ack(ctx, id); err != nil {
				fail(err)
				return
			}
		case <-ctx.Done():
			select {
			case id := <-a.todo:
				_ = a.ack(ctx, id) // else it comes again
			default:
			}
			return
		}
	}
}

// ack acknowledges one id even after ctx has ended: what was printed counts.
func (a *acker) ack(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackWait)
	defer cancel()
	_, err := a.client.AckEvents(ctx, &apiv1.AckEventsRequest{Cursor: a.cursor, Id: id})
	return err
}

// read acknowledges the ids in the lines of r. The end of r ends nothing.
func (a *acker) read(ctx context.Context, r io.Reader, fail context.CancelCauseFunc) {
	in := bufio.NewScanner(r)
	for in.Scan() {
		line := strings.TrimSpace(in.Text())
		if line == "" {
			continue
		}
		id, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			fail(usagef("write the id of an event on each line", "an acknowledgement is no number"))
			return
		}
		if err := a.ack(ctx, id); err != nil {
			fail(err)
			return
		}
	}
}

func (k *kith) printEvent(e *apiv1.Event) error {
	if k.json {
		data := json.RawMessage(e.Data)
		if !json.Valid(data) {
			data = json.RawMessage("{}")
		}
		b, err := json.Marshal(struct {
			ID   uint64          `json:"id"`
			Type string          `json:"type"`
			Time int64           `json:"time"`
			Data json.RawMessage `json:"data"`
		}{e.Id, e.Type, e.TimeMs, data})
		if err != nil {
			return fmt.Errorf("show an event: %w", err)
		}
		return k.writeEvent(append(cleanJSON(b), '\n'))
	}
	return k.writeEvent([]byte(fmt.Sprintf("%s  %s\n", clock(e.TimeMs), describeEvent(e))))
}

// writeEvent fails if nobody reads any more, so that nothing is acknowledged
// that was not taken.
func (k *kith) writeEvent(line []byte) error {
	if _, err := k.stdout.Write(line); err != nil {
		return fmt.Errorf("write the event: %w", err)
	}
	return nil
}

// describeEvent says in words what happened.
func describeEvent(e *apiv1.Event) string {
	var d struct {
		ID      string `json:"id"`
		From    string `json:"from"`
		FromMe  bool   `json:"from_me"`
		Text    string `json:"text"`
		State   string `json:"state"`
		Name    string `json:"name"`
		Reason  string `json:"reason"`
		Profile string `json:"profile"`
	}
	if json.Unmarshal([]byte(e.Data), &d) != nil {
		return clean(e.Type)
	}
	switch {
	case e.Type == "message" && d.FromMe:
		return "me: " + cleanText(d.Text, "    ")
	case e.Type == "message":
		return clean(d.From) + ": " + cleanText(d.Text, "    ")
	case e.Type == "ledger":
		return "message " + clean(d.ID) + " is " + clean(d.State) + prefixed(": ", clean(d.Reason))
	case e.Type == "contact" && d.Profile != "" && d.Profile != d.Name:
		return "contact " + clean(d.Name) + " calls themselves " + clean(d.Profile)
	case e.Type == "contact":
		return "contact " + clean(d.Name) + " is " + clean(d.State)
	}
	return clean(e.Type) + prefixed(": ", clean(d.Text))
}
