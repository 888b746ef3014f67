package s3store

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/lifecycle"

	"github.com/remora-storage/remora/remote/store"
)

var _ store.Warner = (*Store)(nil)

// Warnings implements store.Warner: a bucket may be set up to keep what was deleted, or to delete what is in use.
func (s *Store) Warnings(ctx context.Context) (all []string, err error) {
	var rules []lifecycle.Rule
	config, err := s.core.Client.GetBucketLifecycle(ctx, s.opts.Bucket)
	switch {
	case err == nil:
		rules = config.Rules
	case minio.ToErrorResponse(err).Code == "NoSuchLifecycleConfiguration", isNotImplemented(err):
	default:
		return nil, s.fail("get lifecycle of", s.opts.Bucket, err)
	}
	oldExpire := false
	for _, r := range rules {
		if r.Status != "Enabled" || !s.concerns(r) {
			continue
		}
		if !r.Expiration.IsDaysNull() || !r.Expiration.IsDateNull() || r.AllVersionsExpiration.Days > 0 {
			all = append(all, fmt.Sprintf("lifecycle rule %q of bucket %s deletes objects by their age, those that are in use too: "+
				"volumes will be lost; remove the rule, or keep it from %s", r.ID, s.opts.Bucket, s.where()))
		}
		if r.Transition.StorageClass != "" {
			all = append(all, fmt.Sprintf("lifecycle rule %q of bucket %s moves objects to storage class %s: "+
				"reads may become slow or fail; keep the rule from %s", r.ID, s.opts.Bucket, r.Transition.StorageClass, s.where()))
		}
		if !r.NoncurrentVersionExpiration.IsDaysNull() {
			oldExpire = true
		}
	}
	versions, err := s.core.Client.GetBucketVersioning(ctx, s.opts.Bucket)
	if err != nil && !isNotImplemented(err) {
		return all, s.fail("get versioning of", s.opts.Bucket, err)
	}
	if err == nil && versions.Enabled() && !oldExpire {
		all = append(all, fmt.Sprintf("bucket %s keeps old versions of objects: whatever is deleted or replaced takes room for ever; "+
			"turn versioning off, or add a lifecycle rule that expires noncurrent versions of %s", s.opts.Bucket, s.where()))
	}
	if lock, mode, _, _, err := s.core.Client.GetObjectLockConfig(ctx, s.opts.Bucket); err == nil && lock == "Enabled" && mode != nil {
		all = append(all, fmt.Sprintf("bucket %s locks every object (%s): "+
			"nothing that was replaced can be deleted before the lock ends", s.opts.Bucket, *mode))
	}
	return all, nil
}

// where names the part of the bucket that is the store.
func (s *Store) where() string {
	if s.opts.Prefix == "" {
		return "the whole bucket"
	}
	return s.opts.Prefix
}

// concerns reports whether a rule is about objects of the store.
func (s *Store) concerns(r lifecycle.Rule) bool {
	prefix := r.Prefix
	for _, p := range []string{r.RuleFilter.Prefix, r.RuleFilter.And.Prefix} {
		if p != "" {
			prefix = p
		}
	}
	if r.RuleFilter.Tag.Key != "" || len(r.RuleFilter.And.Tags) > 0 {
		return false // what a store keeps has no tags
	}
	return strings.HasPrefix(prefix, s.opts.Prefix) || strings.HasPrefix(s.opts.Prefix, prefix)
}

func isNotImplemented(err error) bool {
	r := minio.ToErrorResponse(err)
	return r.StatusCode == http.StatusNotImplemented || r.Code == "NotImplemented"
}
