-- Schema 3.

-- Which of our mailboxes handed out which envelope, by the beginning of its
-- digest, and when (an age).
CREATE TABLE handed (
  node     BLOB NOT NULL,
  envelope BLOB NOT NULL,
  age      INTEGER NOT NULL,
  PRIMARY KEY (node, envelope)
) STRICT, WITHOUT ROWID;
CREATE INDEX handed_envelope ON handed (envelope);
CREATE INDEX handed_age ON handed (age);

-- Receipts that contacts say a mailbox of ours gave for what it has not handed
-- out yet.
CREATE TABLE claims (
  node     BLOB NOT NULL,
  envelope BLOB NOT NULL,
  contact  INTEGER NOT NULL REFERENCES contacts(id) ON DELETE CASCADE,
  age      INTEGER NOT NULL,      -- when it was said
  PRIMARY KEY (node, envelope)
) STRICT, WITHOUT ROWID;

-- The receipts that a contact is to be told of.
CREATE TABLE telling (
  contact  INTEGER NOT NULL REFERENCES contacts(id) ON DELETE CASCADE,
  envelope BLOB NOT NULL,
  node     BLOB NOT NULL,
  age      INTEGER NOT NULL,      -- when its end-to-end receipt came
  PRIMARY KEY (contact, envelope, node)
) STRICT, WITHOUT ROWID;

-- The secret paths of a bridge, one for each person they are given to.
CREATE TABLE bridge_invites (
  id          INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again: the operator names an invite by it
  name        TEXT NOT NULL,
  path_sealed BLOB NOT NULL,                     -- under the time it was made
  created     INTEGER NOT NULL
) STRICT;

-- Parts of bundles that are carried for others, as they came: nobody here can
-- tell for whom, or from noise.
CREATE TABLE carried (
  id    INTEGER PRIMARY KEY AUTOINCREMENT, -- in the order of arrival, which keeps pieces together
  hash  BLOB NOT NULL UNIQUE,              -- SHA-256 of the part
  part  BLOB NOT NULL,
  erase INTEGER NOT NULL                   -- age
) STRICT;

-- The user hides their address from this contact.
ALTER TABLE contacts ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0;

-- Bridges that we know: ways in. Their addresses are secrets of who gave them.
CREATE TABLE bridges (
  address TEXT PRIMARY KEY,       -- multiaddr with /p2p
  source  INTEGER NOT NULL,       -- 1 the user, 2 an invite, 3 a contact
  contact INTEGER REFERENCES contacts(id) ON DELETE CASCADE, -- who told us of it, of source 3
  shared  INTEGER NOT NULL,       -- named in invites, and told to contacts
  added   INTEGER NOT NULL        -- Unix milliseconds
) STRICT, WITHOUT ROWID;
