-- Schema 2: mailboxes.

-- Our boxes, one at a node.
CREATE TABLE boxes (
  node       BLOB PRIMARY KEY,    -- the node's transport name (peer id)
  address    TEXT NOT NULL,       -- multiaddr with /p2p
  key_sealed BLOB NOT NULL,       -- the box's own key
  state      INTEGER NOT NULL,
  chosen     INTEGER NOT NULL,    -- by the user
  left       INTEGER NOT NULL DEFAULT 0 -- age since which it is only emptied
) STRICT, WITHOUT ROWID;

-- What we know of nodes that keep mail, ours and our contacts'.
CREATE TABLE keepers (
  node     BLOB PRIMARY KEY,
  strikes  INTEGER NOT NULL,      -- proven lies and losses, forgiven one a day
  doubts   INTEGER NOT NULL,      -- the same by what became of contacts' mail, which contacts can make look so
  struck   INTEGER NOT NULL,      -- age at which both were brought up to date
  failing  INTEGER NOT NULL,      -- age since which it does not answer; 0: it does
  seen     INTEGER NOT NULL,      -- when it last answered
  probes   INTEGER NOT NULL,      -- test envelopes left there
  lost     INTEGER NOT NULL,      -- of those it did not give back
  evidence BLOB                   -- newest sentences, encoded by the node
) STRICT, WITHOUT ROWID;

-- Where contacts' devices have theirs.
CREATE TABLE device_boxes (
  device BLOB PRIMARY KEY REFERENCES devices(hash) ON DELETE CASCADE,
  boxes  BLOB NOT NULL            -- as the device told it
) STRICT, WITHOUT ROWID;

-- How often an open delivery has been left at mailboxes, and when next (an age).
CREATE TABLE deposits (
  delivery INTEGER PRIMARY KEY REFERENCES deliveries(id) ON DELETE CASCADE,
  rounds   INTEGER NOT NULL,
  due      INTEGER NOT NULL
) STRICT;

-- The receipts of nodes for it.
CREATE TABLE holdings (
  delivery INTEGER NOT NULL REFERENCES deliveries(id) ON DELETE CASCADE,
  node     BLOB NOT NULL,
  until    INTEGER NOT NULL,      -- age until which the node keeps it
  PRIMARY KEY (delivery, node)
) STRICT, WITHOUT ROWID;
