-- Version 2: a call that is revoked before it comes does not run when it comes.

-- Ids that were revoked before anybody had sent their calls, oldest first by rowid; as many as the
-- scheduler remembers.
CREATE TABLE revoked (
    id          TEXT PRIMARY KEY    -- of the call that may still come
);
