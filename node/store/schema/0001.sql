-- Schema 1. Times are Unix milliseconds by the clock on the wall, for people;
-- columns named born, erase, due and expires of deliveries, asked and used count
-- in ages, milliseconds by the store's own clock (node/age.go), which no wrong
-- clock can turn. Columns named *_sealed hold key
-- material and are sealed once more under the data key (seal.go); everything
-- else is protected by the encryption of the whole file.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: the account and this device.
CREATE TABLE account (
  id            INTEGER PRIMARY KEY CHECK (id = 1),
  name          TEXT NOT NULL,
  secret_sealed BLOB NOT NULL,   -- account seed, then device key
  list          BLOB NOT NULL,   -- our signed device list
  created       INTEGER NOT NULL
) STRICT;

CREATE TABLE contacts (
  id       INTEGER PRIMARY KEY,
  handle   TEXT NOT NULL UNIQUE,  -- the stable id that users and the API see
  name     TEXT NOT NULL,         -- what the user calls them
  profile  TEXT NOT NULL,         -- what they call themselves
  account  BLOB UNIQUE,           -- their account key; NULL until their bundle was found
  state    INTEGER NOT NULL,
  blocked  INTEGER NOT NULL,
  verified INTEGER NOT NULL,
  list     BLOB,                  -- their newest signed device list
  alarm    TEXT NOT NULL DEFAULT '', -- why sending is paused, if it is
  added    INTEGER NOT NULL,
  seen     INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Devices of contacts. A device has a row from the moment we know its hash.
CREATE TABLE devices (
  hash        BLOB PRIMARY KEY,
  contact     INTEGER NOT NULL REFERENCES contacts(id),
  public      BLOB,               -- device identity; NULL until its bundle was found
  link_sealed BLOB,               -- the invite we answered, until the session is confirmed
  addresses   BLOB                -- where it was last reached
) STRICT, WITHOUT ROWID;
CREATE INDEX devices_contact ON devices(contact);

-- With row ids: a state fills most of a page, and would overflow in an index.
CREATE TABLE sessions (
  id           BLOB NOT NULL PRIMARY KEY, -- sid
  device       BLOB NOT NULL REFERENCES devices(hash),
  pair_sealed  BLOB NOT NULL,     -- pair secret; never changes
  state_sealed BLOB NOT NULL,     -- ratchet, tag chains and handshake remains
  created      INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_device ON sessions(device);

-- Every tag we accept, with the session (or invite) it names.
CREATE TABLE tags (
  tag     BLOB PRIMARY KEY,
  session BLOB REFERENCES sessions(id) ON DELETE CASCADE,
  idx     INTEGER NOT NULL,
  invite  BLOB REFERENCES invites(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_session ON tags(session, idx);
CREATE INDEX tags_invite ON tags(invite);

CREATE TABLE invites (
  id            BLOB PRIMARY KEY,
  secret_sealed BLOB NOT NULL,    -- the link
  name          TEXT NOT NULL,
  reusable      INTEGER NOT NULL,
  state         INTEGER NOT NULL,
  uses          INTEGER NOT NULL,
  created       INTEGER NOT NULL,
  expires       INTEGER NOT NULL,
  erase         INTEGER NOT NULL  -- age from which nothing of it is needed
) STRICT, WITHOUT ROWID;

CREATE TABLE prekeys (
  id            BLOB PRIMARY KEY,
  invite        BLOB NOT NULL REFERENCES invites(id) ON DELETE CASCADE,
  secret_sealed BLOB NOT NULL,
  born          INTEGER NOT NULL,
  erase         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX prekeys_invite ON prekeys(invite);

-- First messages answered, so that a replay makes no second session. A row
-- lives as long as the prekey it used could.
CREATE TABLE handshakes (
  hash    BLOB PRIMARY KEY,       -- of the handshake prefix
  session BLOB NOT NULL,
  erase   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- In the order of arrival, so that a message's row goes where the last one went;
-- of a hash's index only the entry lands anywhere.
CREATE TABLE messages (
  n        INTEGER PRIMARY KEY,
  id       BLOB NOT NULL UNIQUE,
  contact  INTEGER NOT NULL REFERENCES contacts(id),
  author   BLOB NOT NULL,         -- device hash
  mine     INTEGER NOT NULL,
  seq      INTEGER NOT NULL,
  depth    INTEGER NOT NULL,
  received INTEGER NOT NULL,
  owed     INTEGER NOT NULL,      -- of a received message: its receipt was held back
  gone     INTEGER NOT NULL,      -- will never come, or was taken back: the reason
  wire     BLOB NOT NULL          -- encoded message; empty when gone
) STRICT;
CREATE UNIQUE INDEX messages_chain ON messages(contact, author, seq);
CREATE INDEX messages_order ON messages(contact, depth, author, seq) WHERE gone = 0;
CREATE INDEX messages_owed ON messages(contact) WHERE owed = 1;

-- The end of each author's chain in a conversation.
CREATE TABLE chains (
  contact INTEGER NOT NULL REFERENCES contacts(id),
  author  BLOB NOT NULL,
  seq     INTEGER NOT NULL,
  id      BLOB NOT NULL,
  depth   INTEGER NOT NULL,
  cited   INTEGER NOT NULL,       -- our own newest message names it as a parent
  asked   INTEGER NOT NULL DEFAULT 0, -- when a gap below it was last asked for
  kept    INTEGER NOT NULL DEFAULT 0, -- bytes of the messages received of it
  PRIMARY KEY (contact, author)
) STRICT, WITHOUT ROWID;

-- What leaves: one row per message and device, and one per control message
-- until it is taken.
CREATE TABLE deliveries (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  device    BLOB NOT NULL,
  contact   INTEGER NOT NULL,
  message   INTEGER,              -- messages.n; NULL: a control message, not in the ledger
  open      INTEGER NOT NULL,     -- its envelope is still to be sent, or receipted
  tag_index INTEGER NOT NULL,     -- of the chain the envelope's tag came from
  state     INTEGER NOT NULL,
  reason    TEXT NOT NULL DEFAULT '',
  attempts  BLOB,                 -- newest attempts
  due       INTEGER NOT NULL,     -- not offered again before
  expires   INTEGER NOT NULL,
  delivered INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX deliveries_open ON deliveries(device, id) WHERE open = 1;
CREATE INDEX deliveries_message ON deliveries(message) WHERE message IS NOT NULL;

-- The envelopes of open deliveries: apart from the ledger, which is small and
-- stays.
CREATE TABLE envelopes (
  delivery INTEGER PRIMARY KEY REFERENCES deliveries(id) ON DELETE CASCADE,
  bytes    BLOB NOT NULL
) STRICT;

CREATE TABLE events (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  type    TEXT NOT NULL,
  contact INTEGER NOT NULL,       -- whom it is about; 0: nobody
  time    INTEGER NOT NULL,
  born    INTEGER NOT NULL,
  data    BLOB NOT NULL           -- JSON
) STRICT;

CREATE TABLE cursors (
  name  TEXT PRIMARY KEY,
  acked INTEGER NOT NULL,
  used  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Requests of API clients that may be repeated.
CREATE TABLE idempotency (
  key      TEXT PRIMARY KEY,
  contact  INTEGER NOT NULL,
  messages BLOB NOT NULL,
  born     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Community nodes that served us well.
CREATE TABLE ways (
  address TEXT PRIMARY KEY,
  seen    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How often each rendezvous point was written to: the sequence number of the
-- record there, which rises and says nothing else.
CREATE TABLE points (
  key BLOB PRIMARY KEY,
  seq INTEGER NOT NULL,
  day INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
