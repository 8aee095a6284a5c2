-- States: 0 queued, 1 paused, 2 running, 3 parked, 4 done, 5 failed, 6 cancelled.
-- Priorities: 0 urgent, 1 normal, 2 batch. Times: milliseconds since 1970. Ids: 16 bytes.
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    hints TEXT,
    owner TEXT,
    idempotency_key TEXT,
    submitted INTEGER NOT NULL,
    started INTEGER,
    finished INTEGER,
    deadline INTEGER,
    start_by INTEGER,
    not_before INTEGER,
    attempt INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    worker TEXT,
    lease_until INTEGER,
    cancel_requested INTEGER NOT NULL,
    pause_requested INTEGER NOT NULL,
    -- What is only read whole: wishes, history, progress, session, outcome, error.
    record TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX jobs_by_key ON jobs (ifnull(owner, ''), idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_queued ON jobs (priority, turn, seq) WHERE state = 0;
CREATE INDEX jobs_start_by ON jobs (start_by) WHERE state = 0 AND start_by IS NOT NULL;
CREATE INDEX jobs_leased ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;
CREATE INDEX jobs_by_state ON jobs (state, seq) WHERE state <> 4;
CREATE INDEX jobs_by_owner ON jobs (owner, seq) WHERE owner IS NOT NULL;

-- Beside the record, so that progress does not rewrite it.
CREATE TABLE requests (seq INTEGER PRIMARY KEY, request TEXT NOT NULL) STRICT;
CREATE TABLE previews (seq INTEGER PRIMARY KEY, media_type TEXT NOT NULL, content BLOB NOT NULL) STRICT;

CREATE TABLE artifacts (
    id BLOB PRIMARY KEY,
    seq INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_job ON artifacts (seq);

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    job BLOB,
    what TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job, id) WHERE job IS NOT NULL;

CREATE TABLE commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    worker TEXT NOT NULL,
    sent INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    what TEXT NOT NULL,
    acknowledged TEXT
) STRICT;
CREATE INDEX commands_open ON commands (worker, id) WHERE acknowledged IS NULL;

CREATE TABLE workers (
    worker TEXT PRIMARY KEY,
    first_seen INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    cards TEXT,
    status TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
