package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/store"
)

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
	s, err := mailbox.Open(ctx, mailbox.Config{
		Path: filepath.Join(d.cfg.paths.Data, "mailbox.db"), Key: raw, Limits: mailbox.Limits{Quota: d.quota}, Log: d.log,
	})
	switch {
	case errors.Is(err, mailbox.ErrNewerSchema):
		return nil, &api.Error{Code: api.CodeRefused, Message: "the mailboxes were written by a newer kith", Hint: "install that version again, or a later one"}
	case errors.Is(err, mailbox.ErrDamaged):
		return nil, &api.Error{
			Code: api.CodeRefused, Message: "the file of the mailboxes is damaged",
			Hint: "restore it from a backup, or move mailbox.db out of " + d.cfg.paths.Data + " to begin with none",
		}
	case err != nil:
		return nil, fmt.Errorf("open the mailboxes: %w", err)
	}
	return s, nil
}

// operator is the service of a community node as the local API shows it.
type operator struct{ mail *mailbox.Service }

var _ api.Operator = operator{}

// NodeStatus says what the node keeps.
func (o operator) NodeStatus(ctx context.Context, _ *apiv1.NodeStatusRequest) (*apiv1.NodeStatusResponse, error) {
	s, err := o.mail.Status(ctx)
	if err != nil {
		return nil, explainMail(err)
	}
	l := s.Limits
	out := &apiv1.NodeStatusResponse{
		State: "serving", Used: s.Disk, Boxes: s.Boxes, Tags: s.Tags, Envelopes: s.Items,
		EnvelopeBytes: s.Mail + s.Requests, RequestBytes: s.Requests, OldestS: int64(s.Oldest / time.Second), Streams: int64(s.Streams),
		Deposits: s.Stored, Collected: s.Collected, Refusals: s.Refused,
		Limits: &apiv1.NodeLimits{
			Quota: l.Quota, BoxQuota: l.BoxQuota, TagQuota: l.TagQuota, RequestShare: l.RequestShare,
			RetentionS: int64(l.Retention / time.Second), BoxIdleS: int64(l.BoxIdle / time.Second),
			Boxes: l.Boxes, BoxTags: l.BoxTags, SourceRate: l.SourceRate,
		},
	}
	switch {
	case s.Failed:
		out.State = "failed"
	case s.Draining:
		out.State = "draining"
	case s.DiskFull || s.Disk >= l.Quota:
		out.State = "full"
	}
	return out, nil
}

// SetNode changes what the node may keep, and whether it retires.
func (o operator) SetNode(ctx context.Context, req *apiv1.SetNodeRequest) (*apiv1.SetNodeResponse, error) {
	if l := req.GetLimits(); l != nil {
		err := o.mail.Configure(ctx, mailbox.Limits{
			Quota: l.Quota, BoxQuota: l.BoxQuota, TagQuota: l.TagQuota, RequestShare: l.RequestShare,
			Retention: time.Duration(l.RetentionS) * time.Second, BoxIdle: time.Duration(l.BoxIdleS) * time.Second,
			Boxes: l.Boxes, BoxTags: l.BoxTags, SourceRate: l.SourceRate,
		})
		if err != nil {
			return nil, explainMail(err)
		}
	}
	if req.Draining != nil {
		if err := o.mail.SetDraining(ctx, *req.Draining); err != nil {
			return nil, explainMail(err)
		}
	}
	s, err := o.NodeStatus(ctx, &apiv1.NodeStatusRequest{})
	if err != nil {
		return nil, err
	}
	return &apiv1.SetNodeResponse{Status: s}, nil
}

// explainMail gives the one error of the service that needs it a next step.
func explainMail(err error) error {
	if errors.Is(err, mailbox.ErrDamaged) {
		return &api.Error{Code: api.CodeRefused, Message: "the file of the mailboxes is damaged", Hint: "stop kith and restore mailbox.db from a backup"}
	}
	return err
}
