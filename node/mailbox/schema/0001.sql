-- What a node keeps for those who are away. Times are of the service's own age
-- (age.go), in milliseconds.

CREATE TABLE meta (
	name  TEXT PRIMARY KEY,
	value BLOB NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE boxes (
	id         INTEGER PRIMARY KEY AUTOINCREMENT, -- never a box's twice: streams hold on to it
	key        BLOB NOT NULL UNIQUE, -- the owner's public key
	grp        INTEGER NOT NULL, -- of sources (limits.go): ten bits, not an address
	seen       INTEGER NOT NULL, -- when its owner last came
	generation INTEGER NOT NULL, -- of the newest tags
	last       INTEGER NOT NULL, -- the newest item's number
	tags       INTEGER NOT NULL,
	items      INTEGER NOT NULL,
	mail       INTEGER NOT NULL, -- bytes of contacts' envelopes
	requests   INTEGER NOT NULL  -- bytes of strangers' envelopes
) STRICT;

-- Who registers a tag first has it; who comes after them has it when they let
-- go, and cannot tell.
CREATE TABLE tags (
	tag        BLOB NOT NULL,
	since      INTEGER NOT NULL,
	box        INTEGER NOT NULL,
	class      INTEGER NOT NULL,
	generation INTEGER NOT NULL,
	bytes      INTEGER NOT NULL, -- of envelopes under it
	PRIMARY KEY (tag, since, box)
) WITHOUT ROWID, STRICT;

CREATE INDEX tags_box ON tags (box);

CREATE TABLE items (
	n      INTEGER PRIMARY KEY,
	box    INTEGER NOT NULL,
	id     INTEGER NOT NULL, -- its number in the box
	class  INTEGER NOT NULL,
	stored INTEGER NOT NULL,
	until  INTEGER NOT NULL, -- when it may be dropped
	key    INTEGER NOT NULL, -- the beginning of its digest
	body   BLOB NOT NULL     -- the envelope
) STRICT;

CREATE UNIQUE INDEX items_box ON items (box, id);
CREATE INDEX items_key ON items (key);
CREATE INDEX items_until ON items (until);
