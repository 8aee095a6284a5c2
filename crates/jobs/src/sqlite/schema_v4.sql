-- Keys to the service, without their tokens: JSON.
CREATE TABLE access_keys (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- What became of the jobs of each name that has or had a key.
CREATE TABLE usage (
    owner TEXT PRIMARY KEY,
    submitted INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    artifacts INTEGER NOT NULL DEFAULT 0,
    worked_ms INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- When a job of each owner was begun last: whose turn it is.
CREATE TABLE served (owner TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- Jobs of its owner that may run at once.
ALTER TABLE jobs ADD COLUMN running_max INTEGER;

-- What waits and runs, by owner.
CREATE INDEX jobs_open_by_owner ON jobs (state, owner, priority, turn, seq) WHERE owner IS NOT NULL AND state < 4;
