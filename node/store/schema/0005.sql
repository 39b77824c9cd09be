-- When each node that gave a receipt for an envelope was last heard about it.
ALTER TABLE holdings ADD COLUMN asked INTEGER NOT NULL DEFAULT 0; -- age when the node signed for it, or last proved that it is there
