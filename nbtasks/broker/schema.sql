-- The store of one cluster, version 1. Written by the broker only (store.py), one transaction a
-- turn of its loop. What users sent (calls, values, functions) is kept as the bytes that came over
-- the wire and is never looked into.
--
--     functions 1 ──── n tasks 1 ──── n events
--                          1 ──── n payloads      (large bodies and buffers of calls and events)
--     functions 1 ──── n function_payloads
--
-- "Wall" is seconds since the epoch; "boot" is seconds since the machine started, a clock that
-- nobody can set and that starts again with the machine.

-- What the store knows about itself.
CREATE TABLE meta (
    key         TEXT PRIMARY KEY,   -- name: random name of this store; boot_id: machine run of due;
                                    -- boot_clock: boot, when that was noted; ticket_offset: what
                                    -- tickets of this machine run are higher by
    value       TEXT NOT NULL       -- what key says
) WITHOUT ROWID;

-- Functions, one row for each version of their code that was ever sent.
CREATE TABLE functions (
    function    INTEGER PRIMARY KEY, -- what tasks name it by
    digest      BLOB NOT NULL,      -- 16 bytes; empty: calls by name, whose code nobody has sent
    name        TEXT NOT NULL,      -- of the task
    saved_at    REAL NOT NULL,      -- wall
    version     INTEGER NOT NULL,   -- rises with each saving: a call by name gets the highest
    definition  BLOB,               -- messages.Define (msgpack); NULL: not sent (yet)
    UNIQUE (digest, name)
);

CREATE INDEX functions_by_name ON functions (name, version) WHERE definition IS NOT NULL;

-- Payload frames of functions.
CREATE TABLE function_payloads (
    function    INTEGER NOT NULL,   -- functions.function
    frame       INTEGER NOT NULL,   -- 0, 1, ... in the order of the message
    part        INTEGER NOT NULL,   -- 0, 1, ...: a frame longer than SQLite takes lies in parts
    data        BLOB NOT NULL,      -- the bytes, as they came
    PRIMARY KEY (function, frame, part)
) WITHOUT ROWID;

-- Tasks: one row for each submitted call, open or ended.
CREATE TABLE tasks (
    seq         INTEGER PRIMARY KEY, -- order of acceptance
    id          TEXT NOT NULL,      -- what users know it by
    function    INTEGER NOT NULL,   -- functions.function
    client      BLOB NOT NULL,      -- wire identity of the client that sent it
    priority    INTEGER NOT NULL,   -- 9 first, 0 last
    queue       TEXT NOT NULL,      -- that a worker must serve to get it
    parent      TEXT NOT NULL,      -- id of the task that sent it, or empty
    root        TEXT NOT NULL,      -- id of the first task of its tree; empty: itself
    accepted_at REAL NOT NULL,      -- wall
    phase       TEXT NOT NULL,      -- states.PHASES
    state       TEXT NOT NULL,      -- what users see: PENDING, STARTED, PROGRESS, SUCCESS ...
    n           INTEGER NOT NULL,   -- number of its last event
    retries     INTEGER NOT NULL,   -- how many came before the present attempt
    deaths      INTEGER NOT NULL,   -- processes that died under it; -1: a run has put it back
    due         REAL,               -- boot; earliest start by countdown or back-off
    due_at      REAL,               -- wall; what due meant when it was saved, for the next boot
    eta         REAL,               -- wall; earliest start
    expires     REAL,               -- wall; latest start
    worker      TEXT NOT NULL,      -- name of the worker that holds it or held it last, or empty
    ticket      INTEGER NOT NULL,   -- token of its attempt: (worker, ticket)
    ended_at    REAL,               -- wall; NULL while it is open
    wish        TEXT NOT NULL,      -- revoked, terminated, purged: it shall not begin (again); or empty
    limit_at    REAL,               -- boot; when its hard time limit ends the present run
    call        BLOB NOT NULL,      -- messages.Call (msgpack), without a long body
    only_event  BLOB                -- messages.Event 1 (msgpack) of a task that had no other
                                    -- and what function and id say
);

-- Not unique: whether an id may come twice is the scheduler's to decide, and a refusal here would
-- take everybody else's saves of the turn with it. The task that came last is the one meant.
CREATE INDEX tasks_by_id ON tasks (id);

-- Open tasks in order (ended_at IS NULL comes first), then ended ones, longest ago first. State and
-- function stand in it so that they are counted without touching the rows.
CREATE INDEX tasks_by_end ON tasks (ended_at, seq, state, function);

CREATE INDEX tasks_by_parent ON tasks (parent) WHERE parent != '';

-- Who was given what, many calls to a row: cheaper than to write each task's row anew. A note holds
-- while its ticket is higher than the one in the task's row.
CREATE TABLE given (
    worker      TEXT NOT NULL,      -- name of the worker
    last        INTEGER NOT NULL,   -- highest ticket in pairs
    pairs       BLOB NOT NULL       -- (ticket, seq) of each call, two little-endian int64
);

-- What happened to each task, as it was told; less tasks.only_event.
CREATE TABLE events (
    seq         INTEGER NOT NULL,   -- tasks.seq
    n           INTEGER NOT NULL,   -- 1, 2, ... in each task
    event       BLOB NOT NULL,      -- messages.Event (msgpack)
    PRIMARY KEY (seq, n)
) WITHOUT ROWID;

-- Large bodies and buffers: never in the rows that change often.
CREATE TABLE payloads (
    seq         INTEGER NOT NULL,   -- tasks.seq
    n           INTEGER NOT NULL,   -- 0: of the call; otherwise of event n
    frame       INTEGER NOT NULL,   -- 0, 1, ... in the order of the message; -1: the call's body
    part        INTEGER NOT NULL,   -- 0, 1, ...: a frame longer than SQLite takes lies in parts
    data        BLOB NOT NULL,      -- the bytes, as they came
    PRIMARY KEY (seq, n, frame, part)
) WITHOUT ROWID;

-- Small things kept under a name (saved groups).
CREATE TABLE notes (
    key         TEXT PRIMARY KEY,   -- as the client chose it
    data        BLOB NOT NULL       -- the bytes, as they came
) WITHOUT ROWID;
