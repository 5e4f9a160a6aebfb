-- Version 4: a turn is saved as one row, and the tables of what it changes are written later, many
-- turns at once.

-- What is saved and not yet in its tables. Whoever opens the store takes it up first.
CREATE TABLE journal (
    turn        INTEGER PRIMARY KEY, -- 1, 2, ... in the order of saving
    changes     BLOB NOT NULL       -- journal.Changes (msgpack)
);
