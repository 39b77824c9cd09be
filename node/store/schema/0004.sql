-- Several may tell us of one bridge, and each of them may take back what they told.
CREATE TABLE told_bridges (
  address TEXT NOT NULL,          -- multiaddr with /p2p
  source  INTEGER NOT NULL,       -- 1 the user, 2 an invite, 3 a contact
  contact INTEGER REFERENCES contacts(id) ON DELETE CASCADE, -- who told us of it, of source 3
  shared  INTEGER NOT NULL,       -- named in invites, and told to contacts
  added   INTEGER NOT NULL        -- Unix milliseconds
) STRICT;
INSERT INTO told_bridges (address, source, contact, shared, added) SELECT address, source, contact, shared, added FROM bridges;
DROP TABLE bridges;
ALTER TABLE told_bridges RENAME TO bridges;
CREATE UNIQUE INDEX bridges_told ON bridges (address, coalesce(contact, 0));
CREATE INDEX bridges_contact ON bridges (contact) WHERE contact IS NOT NULL;
