package mailbox

import (
	"context"
	"io/fs"
)

// What the tests, which are another package because of who imports this one,
// replace and look into.

// Migrations are the schema's files.
var Migrations fs.FS = migrations

// OpenWith is Open on another file layer, or with another schema.
func OpenWith(ctx context.Context, cfg Config, vfs string, schema fs.FS) (*Service, error) {
	return open(ctx, cfg, engine{vfs: vfs, schema: schema})
}

// Age is the service's own, in milliseconds.
func (s *Service) Age() int64 { return s.age.now() }

// Tidy drops what has ended.
func (s *Service) Tidy(ctx context.Context) error { return s.tidyOnce(ctx) }
