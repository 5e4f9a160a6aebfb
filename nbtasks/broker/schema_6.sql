-- Version 6: tasks that ended with nothing special about them lie many to a row.

-- Ended tasks that were brought to their tables together, until somebody asks for any of them.
CREATE TABLE bundles (
    bundle      INTEGER PRIMARY KEY, -- 1, 2, ... in the order of packing
    first       INTEGER NOT NULL,   -- lowest tasks.seq in it; not all up to the last are in it
    last        INTEGER NOT NULL,   -- highest tasks.seq in it
    prefix      TEXT NOT NULL,      -- what all ids in it begin with
    low         TEXT NOT NULL,      -- first of its ids, as texts are sorted
    high        TEXT NOT NULL,      -- last of its ids
    function    INTEGER NOT NULL,   -- functions.function, of all of them
    state       TEXT NOT NULL,      -- of all of them
    count       INTEGER NOT NULL,   -- how many they are
    ended_first REAL NOT NULL,      -- wall; when the first of them ended
    ended_last  REAL NOT NULL,      -- wall; when the last of them ended
    packed      BLOB NOT NULL       -- a list of bundles.PackedTask (msgpack)
);

CREATE INDEX bundles_by_seq ON bundles (last, first);

CREATE INDEX bundles_by_id ON bundles (prefix, high, low);

-- All that is asked of many bundles at once: the rows are long.
CREATE INDEX bundles_by_end ON bundles (ended_last, ended_first, state, count, function);
