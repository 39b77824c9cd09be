package mailbox

import (
	"context"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// NodeStatus is Status as the local API shows it.
func (s *Service) NodeStatus(ctx context.Context, _ *apiv1.NodeStatusRequest) (*apiv1.NodeStatusResponse, error) {
	st, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	l := st.Limits
	state := "serving"
	switch {
	case st.Failed:
		state = "failed"
	case st.Draining:
		state = "draining"
	case st.DiskFull || st.Disk >= l.Quota:
		state = "full"
	}
	return &apiv1.NodeStatusResponse{
		State: state,
		Limits: &apiv1.NodeLimits{
			Quota: l.Quota, BoxQuota: l.BoxQuota, TagQuota: l.TagQuota, RequestShare: l.RequestShare,
			RetentionS: int64(l.Retention / time.Second), BoxIdleS: int64(l.idle() / time.Second),
			Boxes: l.Boxes, BoxTags: l.BoxTags, SourceRate: l.SourceRate,
		},
		Used: st.Disk, Boxes: st.Boxes, Tags: st.Tags, Envelopes: st.Items,
		EnvelopeBytes: st.Mail + st.Requests, RequestBytes: st.Requests,
		OldestS: int64(st.Oldest / time.Second), Streams: int64(st.Streams),
		Deposits: st.Stored, Collected: st.Collected, Expired: st.Expired, Refusals: st.Refused,
	}, nil
}

// SetNode changes what is given, at once and for later starts too.
func (s *Service) SetNode(ctx context.Context, r *apiv1.SetNodeRequest) (*apiv1.SetNodeResponse, error) {
	if l := r.GetLimits(); l != nil {
		err := s.Configure(ctx, Limits{
			Quota: l.Quota, BoxQuota: l.BoxQuota, TagQuota: l.TagQuota, RequestShare: l.RequestShare,
			Retention: time.Duration(l.RetentionS) * time.Second, BoxIdle: time.Duration(l.BoxIdleS) * time.Second,
			Boxes: l.Boxes, BoxTags: l.BoxTags, SourceRate: l.SourceRate,
		})
		if err != nil {
			return nil, err
		}
	}
	if r.Draining != nil {
		if err := s.SetDraining(ctx, *r.Draining); err != nil {
			return nil, err
		}
	}
	status, err := s.NodeStatus(ctx, nil)
	return &apiv1.SetNodeResponse{Status: status}, err
}
