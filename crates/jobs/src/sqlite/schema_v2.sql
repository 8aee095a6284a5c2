-- Counts are kept as jobs change: counting a million finished jobs for every look at the panel takes too long.
CREATE TABLE tally (
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (state, priority)
) STRICT, WITHOUT ROWID;
INSERT INTO tally SELECT state, priority, count(*) FROM jobs GROUP BY state, priority;
CREATE TRIGGER tally_insert AFTER INSERT ON jobs BEGIN
    INSERT INTO tally VALUES (NEW.state, NEW.priority, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER tally_delete AFTER DELETE ON jobs BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE state = OLD.state AND priority = OLD.priority;
END;
CREATE TRIGGER tally_update AFTER UPDATE OF state, priority ON jobs
WHEN OLD.state <> NEW.state OR OLD.priority <> NEW.priority BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE state = OLD.state AND priority = OLD.priority;
    INSERT INTO tally VALUES (NEW.state, NEW.priority, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;

-- The same for the bytes and number of artifacts, in one row.
CREATE TABLE artifact_tally (artifacts INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT INTO artifact_tally SELECT count(*), ifnull(sum(bytes), 0) FROM artifacts;
CREATE TRIGGER artifact_insert AFTER INSERT ON artifacts BEGIN
    UPDATE artifact_tally SET artifacts = artifacts + 1, bytes = bytes + NEW.bytes;
END;
CREATE TRIGGER artifact_delete AFTER DELETE ON artifacts BEGIN
    UPDATE artifact_tally SET artifacts = artifacts - 1, bytes = bytes - OLD.bytes;
END;

-- What happened, by the minute; the last day is kept.
CREATE TABLE minutes (
    minute INTEGER PRIMARY KEY,
    submitted INTEGER NOT NULL DEFAULT 0,
    started INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    waited_ms INTEGER NOT NULL DEFAULT 0,
    ran_ms INTEGER NOT NULL DEFAULT 0
) STRICT;
