package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

type messageJSON struct {
	ID           string `json:"id"`
	Conversation string `json:"conversation"`
	From         string `json:"from"`
	FromID       string `json:"from_id"`
	FromMe       bool   `json:"from_me"`
	Text         string `json:"text"`
	Time         int64  `json:"time"`
	Received     int64  `json:"received"`
	State        string `json:"state"`
	Seq          uint64 `json:"seq"`
	ReplyTo      string `json:"reply_to,omitempty"`
	Missing      uint32 `json:"missing_before,omitempty"`
	Kind         string `json:"kind"`
	Reason       string `json:"reason,omitempty"`
	holdingJSON
}

// holdingJSON is how many mailboxes keep something for its recipient; left out
// if none does.
type holdingJSON struct {
	Held  int32 `json:"held,omitempty"`
	Of    int32 `json:"of,omitempty"`
	Until int64 `json:"until,omitempty"`
}

func toHolding(h *apiv1.Holding) holdingJSON {
	return holdingJSON{h.GetHeld(), h.GetOf(), h.GetUntilMs()}
}

// after is a state with what mailboxes add to it, such as "held 2/3 until Dec 24
// 10:00".
func (h holdingJSON) after(state string) string {
	if h.Of == 0 {
		return state
	}
	counted := fmt.Sprintf("held %d/%d until %s", h.Held, h.Of, clock(h.Until))
	if h.Held == 0 {
		counted = fmt.Sprintf("held 0/%d", h.Of)
	}
	if state == "held" {
		return counted
	}
	return state + ", " + counted
}

func toMessage(m *apiv1.Message) messageJSON {
	return messageJSON{
		holdingJSON: toHolding(m.GetHolding()),
		ID:          m.GetId(), Conversation: m.GetConversation(), From: m.GetFrom(), FromID: m.GetFromId(), FromMe: m.GetFromMe(),
		Text: m.GetText(), Time: m.GetTimeMs(), Received: m.GetReceivedMs(), State: m.GetState(), Seq: m.GetSeq(),
		ReplyTo: m.GetReplyTo(), Missing: m.GetMissingBefore(), Kind: m.GetKind(), Reason: m.GetReason(),
	}
}

func (k *kith) readCmd() *cobra.Command {
	var last int
	var since string
	c := &cobra.Command{
		Use:   "read CONVERSATION [--last N] [--since ID]",
		Short: "Show the messages of a conversation",
	}
	c.Flags().IntVar(&last, "last", 50, "the newest `N` messages")
	c.Flags().StringVar(&since, "since", "", "all messages after the one with this `ID`")
	k.command(c, 1, 1, func(ctx context.Context, args []string) error {
		if last < 1 {
			return usagef("for example --last 20", "--last takes a number of messages, 1 or more")
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		if since != "" {
			return k.readSince(ctx, client, args[0], since)
		}
		messages, err := lastMessages(ctx, client, args[0], last)
		if err != nil {
			return err
		}
		if len(messages) == 0 && !k.json {
			k.notef("No messages yet. Write one with: kith send%s %s TEXT", k.at(), word(args[0]))
		}
		k.printMessages(messages)
		return nil
	})
	return k.completeContacts(c)
}

// lastMessages returns the newest messages in the conversation's order, paging
// backwards where they do not fit into one answer.
func lastMessages(ctx context.Context, client *api.Client, conversation string, n int) ([]*apiv1.Message, error) {
	var pages [][]*apiv1.Message
	before := ""
	for n > 0 {
		res, err := client.ListMessages(ctx, &apiv1.ListMessagesRequest{
			Conversation: conversation, Last: int32(min(n, api.MaxPage)), Before: before,
		})
		if err != nil {
			return nil, err
		}
		if len(res.Messages) == 0 {
			break
		}
		pages = append(pages, res.Messages)
		n -= len(res.Messages)
		if !res.More {
			break
		}
		before = res.Messages[0].Id
	}
	slices.Reverse(pages)
	return slices.Concat(pages...), nil
}

// readSince prints what stands after a message, page by page.
func (k *kith) readSince(ctx context.Context, client *api.Client, conversation, since string) error {
	for {
		res, err := client.ListMessages(ctx, &apiv1.ListMessagesRequest{Conversation: conversation, Last: api.MaxPage, Since: since})
		if err != nil {
			return err
		}
		k.printMessages(res.Messages)
		if !res.More || len(res.Messages) == 0 {
			return nil
		}
		since = res.Messages[len(res.Messages)-1].Id
	}
}

func (k *kith) printMessages(messages []*apiv1.Message) {
	for _, m := range messages {
		k.print(toMessage(m), func(w io.Writer) { k.writeMessage(w, m) })
	}
}

// writeMessage shows one message to a person.
func (k *kith) writeMessage(w io.Writer, m *apiv1.Message) {
	if m.MissingBefore > 0 {
		fmt.Fprintf(w, "  … %s of %s missing here, asked for again\n", plural(int(m.MissingBefore), "message"), clean(m.From))
	}
	from, state := clean(m.From), ""
	if m.FromMe {
		from, state = "me", " ("+clean(stateOf(m))+")"
	}
	text := cleanText(m.Text, "    ")
	if m.Kind == "unsupported" {
		text = "[needs a newer kith to be shown]"
	}
	id := ""
	if k.verbose {
		id = " " + clean(m.Id)
	}
	fmt.Fprintf(w, "%s%s  %s: %s%s\n", clock(m.TimeMs), id, from, text, state)
}

// stateOf is what became of a message of ours, in words.
func stateOf(m *apiv1.Message) string {
	return toHolding(m.GetHolding()).after(m.GetState()) + prefixed(": ", m.GetReason())
}

func (k *kith) chatsCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "chats",
		Short: "List the conversations, each with its last message",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.ListConversations(ctx, &apiv1.ListConversationsRequest{})
		if err != nil {
			return err
		}
		type chat struct {
			ID       string       `json:"id"`
			Name     string       `json:"name"`
			Kind     string       `json:"kind"`
			Messages int64        `json:"messages"`
			Last     *messageJSON `json:"last"`
			Contact  *contactJSON `json:"contact,omitempty"`
		}
		list := []chat{}
		for _, c := range res.Conversations {
			entry := chat{ID: c.Id, Name: c.Name, Kind: c.Kind, Messages: c.Messages}
			if c.Last != nil {
				m := toMessage(c.Last)
				entry.Last = &m
			}
			if c.Contact != nil {
				p := toContact(c.Contact)
				entry.Contact = &p
			}
			list = append(list, entry)
		}
		k.print(list, func(w io.Writer) {
			if len(list) == 0 {
				fmt.Fprintln(w, k.here("No conversations yet. Make a link for a friend with: kith invite"))
				return
			}
			rows := [][]string{{"NAME", "MESSAGES", "LAST", ""}}
			for _, c := range res.Conversations {
				row := []string{c.Name, strconv.FormatInt(c.Messages, 10), "-", ""}
				if m := c.Last; m != nil {
					from, state := m.From, ""
					if m.FromMe {
						from, state = "me", " ("+stateOf(m)+")"
					}
					row[2], row[3] = clock(m.TimeMs), from+": "+oneLine(m.Text)+state
				}
				rows = append(rows, row)
			}
			table(w, rows...)
		})
		return nil
	})
}

// oneLine is the beginning of a text, on one line.
func oneLine(s string) string {
	const most = 60
	out := []rune{}
	for _, c := range s {
		if len(out) == most {
			return string(out) + "…"
		}
		if c == '\n' || c == '\t' {
			c = ' '
		}
		out = append(out, c)
	}
	return string(out)
}

func (k *kith) traceCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "trace MESSAGE",
		Short: "Show what became of a message: each attempt, each road, the next retry",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.Trace(ctx, &apiv1.TraceRequest{Id: args[0]})
		if err != nil {
			return err
		}
		k.printTrace(res)
		return nil
	})
}

func (k *kith) printTrace(res *apiv1.TraceResponse) {
	type attempt struct {
		Time   int64  `json:"time"`
		Road   string `json:"road"`
		Result string `json:"result"`
	}
	type device struct {
		Device    string    `json:"device"`
		State     string    `json:"state"`
		Attempts  []attempt `json:"attempts"`
		Next      *int64    `json:"next"`
		Delivered *int64    `json:"delivered"`
		Mailboxes int32     `json:"mailboxes"`
		holdingJSON
	}
	at := func(ms int64) *int64 {
		if ms == 0 {
			return nil
		}
		return &ms
	}
	devices := []device{}
	for _, d := range res.Devices {
		entry := device{Device: d.Device, State: d.State, Attempts: []attempt{}, Next: at(d.NextMs), Delivered: at(d.DeliveredMs), Mailboxes: d.Mailboxes, holdingJSON: toHolding(d.Holding)}
		for _, a := range d.Attempts {
			entry.Attempts = append(entry.Attempts, attempt{a.TimeMs, a.Road, a.Result})
		}
		devices = append(devices, entry)
	}
	m := res.GetMessage()
	k.print(struct {
		ID           string   `json:"id"`
		Conversation string   `json:"conversation"`
		State        string   `json:"state"`
		Reason       string   `json:"reason,omitempty"`
		Time         int64    `json:"time"`
		Devices      []device `json:"devices"`
	}{m.GetId(), m.GetConversation(), m.GetState(), m.GetReason(), m.GetTimeMs(), devices}, func(w io.Writer) {
		rows := [][]string{{"message", m.GetId()}, {"state", stateOf(m)}, {"written", clock(m.GetTimeMs())}}
		for _, d := range devices {
			rows = append(rows, []string{"device", d.Device + "  " + d.after(d.State)})
			for _, a := range d.Attempts {
				rows = append(rows, []string{"  " + clock(a.Time), a.Road + ": " + a.Result})
			}
			if d.Next != nil {
				rows = append(rows, []string{"  " + clock(*d.Next), "next attempt"})
			}
		}
		table(w, rows...)
	})
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func (k *kith) cancelCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "cancel MESSAGE",
		Short: "Recall a message that has not left yet",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.Cancel(ctx, &apiv1.CancelRequest{Id: args[0]})
		if err != nil {
			return err
		}
		m := res.GetMessage()
		k.print(struct {
			ID    string `json:"id"`
			State string `json:"state"`
		}{m.GetId(), m.GetState()}, func(w io.Writer) {
			if !k.quiet {
				fmt.Fprintf(w, "The message is %s.\n", clean(m.GetState()))
			}
		})
		return nil
	})
}
