-- Batches whose number of items comes last, and what was refused of one.

alter table runwire.batches
    -- The number of items is not known yet: run_count is the most there may be.
    add column is_open boolean not null default false,
    -- JSON [{"index", "task", "error", "code"}]: the items that were refused and did not come again.
    add column errors text not null default '[]';
