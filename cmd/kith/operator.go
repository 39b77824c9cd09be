package main

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"time"

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
