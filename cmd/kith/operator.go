package main

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/store"
)

// mailFile is where a community node keeps mail, in its data folder.
const mailFile = "mailbox.db"

// openMailboxes opens what a community node keeps for others, beside its own
// store and never in it.
func (d *daemon) openMailboxes(ctx context.Context, st *store.Store) (*mailbox.Service, error) {
	key, err := hostKey(ctx, st)
	if err != nil {
		return nil, err
	}
	raw, err := key.Raw()
	if err != nil || len(raw) != ed25519.PrivateKeySize {
		return nil, errors.Join(errors.New("the node's key is not an Ed25519 key"), err)
	}
	quota, err := d.lastQuota(ctx, st)
	if err != nil {
		return nil, err
	}
	s, err := mailbox.Open(ctx, mailbox.Config{
		Path: filepath.Join(d.cfg.paths.Data, mailFile), Key: raw, Limits: mailbox.Limits{Quota: quota}, Log: d.log,
	})
	switch {
	case errors.Is(err, mailbox.ErrNewerSchema):
		return nil, &api.Error{Code: api.CodeRefused, Message: "the mailboxes were written by a newer kith", Hint: "install that version again, or a later one"}
	case errors.Is(err, mailbox.ErrDamaged):
		return nil, &api.Error{
			Code: api.CodeRefused, Message: "the file of the mailboxes is damaged",
			Hint: "restore it from a backup, or move " + mailFile + " out of " + d.cfg.paths.Data + " to begin with none",
		}
	case err != nil:
		return nil, fmt.Errorf("open the mailboxes: %w", err)
	}
	return s, nil
}

// lastQuota is --quota, or what it was when it was last given: to leave it away
// changes nothing. It is 0 if it never was.
func (d *daemon) lastQuota(ctx context.Context, st *store.Store) (quota int64, err error) {
	if d.quota != 0 {
		return d.quota, st.Update(ctx, func(tx *store.Tx) error {
			return tx.SetMeta(quotaMeta, binary.BigEndian.AppendUint64(nil, uint64(d.quota)))
		})
	}
	err = st.View(ctx, func(tx *store.Tx) error {
		b, err := tx.Meta(quotaMeta)
		if err == nil && len(b) == 8 {
			quota = int64(binary.BigEndian.Uint64(b))
		}
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("load the quota: %w", err)
	}
	return quota, nil
}

// community is a community node as the local API shows it: what every node is, the
// mail that it keeps for others, and the bridge that it may be.
type community struct {
	api.Backend
	mail  operator
	front *bridgeFront // nil: it is none
	at    ma.Multiaddr // where that listens
}

// Status says what the node does with mail besides.
func (c community) Status(ctx context.Context, req *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	out, err := c.Backend.Status(ctx, req)
	if err != nil {
		return nil, err
	}
	out.Mail = "failed"
	if s, err := c.mail.NodeStatus(ctx, &apiv1.NodeStatusRequest{}); err == nil {
		out.Mail = s.GetState()
	}
	return out, nil
}

// Doctor looks at the mail and at the bridge besides.
func (c community) Doctor(ctx context.Context, req *apiv1.DoctorRequest) (*apiv1.DoctorResponse, error) {
	out, err := c.Backend.Doctor(ctx, req)
	if err != nil {
		return nil, err
	}
	out.Checks = append(out.Checks, c.mail.check(ctx))
	if c.front != nil {
		out.Checks = append(out.Checks, c.front.check(ctx, c.at, time.Now()))
	}
	return out, nil
}

// check says what the node does with others' mail. That it is retired is no fault.
func (o operator) check(ctx context.Context) *apiv1.Check {
	c := &apiv1.Check{Name: "mail", Ok: true}
	s, err := o.NodeStatus(ctx, &apiv1.NodeStatusRequest{})
	if err != nil {
		return &apiv1.Check{Name: c.Name, Text: "What is kept for others can not be read.", Hint: "stop kith and restore " + mailFile + " from a backup"}
	}
	switch s.GetState() {
	case "draining":
		c.Text = fmt.Sprintf("Draining: nothing new is taken, and to be collected there is left: %s (kith node drain --undo ends that).", plural(int(s.GetEnvelopes()), "envelope"))
	case "full":
		c.Ok, c.Text = false, "Full: nothing more is taken until something is collected."
		c.Hint = "free some space on the disk, or give the node more with kith node set --quota SIZE"
	case "failed":
		c.Ok, c.Text, c.Hint = false, "The disk failed while saving mail, and none is taken.", "check the disk and start kith again"
	default:
		c.Text = fmt.Sprintf("Mail is taken for others: %s of %s are used.", size(s.GetUsed()), size(s.GetLimits().GetQuota()))
	}
	return c
}

// operator is the service of a community node as the local API shows it. It
// refuses limits that others would make mean something else than they say.
type operator struct{ mail *mailbox.Service }

var _ api.Operator = operator{}

// NodeStatus says what the node keeps. A box is always kept for longer than
// anything can wait in it, whatever was set.
func (o operator) NodeStatus(ctx context.Context, req *apiv1.NodeStatusRequest) (*apiv1.NodeStatusResponse, error) {
	s, err := o.mail.NodeStatus(ctx, req)
	if err != nil {
		return nil, explainMail(err)
	}
	s.Limits.BoxIdleS = max(s.Limits.BoxIdleS, s.Limits.RetentionS+minIdleOver)
	return s, nil
}

// minIdleOver is by how many seconds a box outlives what is in it, at least.
const minIdleOver = int64(time.Hour / time.Second)

// SetNode changes what the node may keep, and whether it retires.
func (o operator) SetNode(ctx context.Context, req *apiv1.SetNodeRequest) (*apiv1.SetNodeResponse, error) {
	now, err := o.NodeStatus(ctx, &apiv1.NodeStatusRequest{})
	if err != nil {
		return nil, err
	}
	if e := checkLimits(now.Limits, req.GetLimits()); e != nil {
		return nil, e
	}
	if _, err := o.mail.SetNode(ctx, req); err != nil {
		return nil, explainMail(err)
	}
	s, err := o.NodeStatus(ctx, &apiv1.NodeStatusRequest{})
	if err != nil {
		return nil, err
	}
	return &apiv1.SetNodeResponse{Status: s}, nil
}

// checkLimits refuses to set what could not hold beside the other limits, as
// they are or are set with it.
func checkLimits(now, set *apiv1.NodeLimits) error {
	quota, retention := now.GetQuota(), now.GetRetentionS()
	if set.GetQuota() != 0 {
		quota = set.GetQuota()
	}
	if set.GetRetentionS() != 0 {
		retention = set.GetRetentionS()
	}
	for _, part := range []struct {
		flag  string
		value int64
	}{{"--box-quota", set.GetBoxQuota()}, {"--tag-quota", set.GetTagQuota()}, {"--request-share", set.GetRequestShare()}} {
		if part.value > quota {
			return usagef("choose less, or raise --quota with it", "%s %s is more than the whole node may keep, which is %s", part.flag, size(part.value), size(quota))
		}
	}
	if idle := set.GetBoxIdleS(); idle != 0 && idle < retention+minIdleOver {
		return usagef("choose more, or lower --retention with it", "--box-idle has to be an hour more than mail is kept for, which is %s", span(retention))
	}
	return nil
}

// explainMail gives the one error of the service that needs it a next step.
func explainMail(err error) error {
	if errors.Is(err, mailbox.ErrDamaged) {
		return &api.Error{Code: api.CodeRefused, Message: "the file of the mailboxes is damaged", Hint: "stop kith and restore " + mailFile + " from a backup"}
	}
	return err
}
