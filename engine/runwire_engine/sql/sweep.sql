-- make_partitions --
-- Makes the partitions of today and the days ahead.
select runwire.make_partitions_v2(today, today + %(days)s::integer) as made
  from (select (runwire.now_v1() at time zone 'UTC')::date as today) as clock;

-- stale_statistics --
-- Young tables that have changed so much that plans made for them may be far off. Postgres itself
-- looks once a minute, by when a plan for an empty table can have met a hundred thousand rows.
select relname as name
  from pg_stat_user_tables
 where schemaname = 'runwire' and n_live_tup < 200000
   and n_mod_since_analyze > 250 + 0.5 * n_live_tup;

-- analyze_runs --
-- Has Postgres look at what the table holds; plans for it are made anew.
analyze (skip_locked) runwire.runs;

-- analyze_run_metadata --
-- The same for metadata.
analyze (skip_locked) runwire.run_metadata;

-- analyze_run_tags --
-- The same for tags.
analyze (skip_locked) runwire.run_tags;

-- analyze_streams --
-- The same for streams.
analyze (skip_locked) runwire.streams;

-- analyze_batch_items --
-- The same for the items of batches.
analyze (skip_locked) runwire.batch_items;

-- analyze_idempotency_keys --
-- The same for idempotency keys.
analyze (skip_locked) runwire.idempotency_keys;

-- analyze_request_keys --
-- The same for request keys.
analyze (skip_locked) runwire.request_keys;

-- analyze_queue_groups --
-- The same for groups.
analyze (skip_locked) runwire.queue_groups;

-- analyze_waits --
-- The same for waits.
analyze (skip_locked) runwire.waits;

-- analyze_wait_targets --
-- The same for who waits for what.
analyze (skip_locked) runwire.wait_targets;

-- analyze_waitpoints --
-- The same for waitpoints.
analyze (skip_locked) runwire.waitpoints;

-- delete_request_keys --
-- Deletes the keys of calls that nobody repeats any more.
delete from runwire.request_keys
 where ctid = any(array(
       select ctid from runwire.request_keys
        where created_at < (select runwire.now_v1()) - %(kept)s::interval
        order by created_at limit %(limit)s for update skip locked));

-- delete_writers --
-- Deletes the numbers of flushers that are gone.
delete from runwire.writers
 where ctid = any(array(
       select ctid from runwire.writers
        where updated_at < (select runwire.now_v1()) - %(kept)s::interval
        order by updated_at limit %(limit)s for update skip locked));

-- delete_idempotency_keys --
-- Deletes idempotency keys that expired.
delete from runwire.idempotency_keys
 where ctid = any(array(
       select ctid from runwire.idempotency_keys
        where expires_at < (select runwire.now_v1()) - %(kept)s::interval
        order by expires_at limit %(limit)s for update skip locked));

-- delete_debounce_keys --
-- Deletes debounce keys whose run is due.
delete from runwire.debounce_keys
 where ctid = any(array(
       select ctid from runwire.debounce_keys
        where expires_at < (select runwire.now_v1()) - %(kept)s::interval
        order by expires_at limit %(limit)s for update skip locked));

-- delete_used_tokens --
-- Deletes used one-time tokens that have expired since.
delete from runwire.used_tokens
 where ctid = any(array(
       select ctid from runwire.used_tokens
        where expires_at < (select runwire.now_v1()) - %(kept)s::interval
        order by expires_at limit %(limit)s for update skip locked));

-- delete_revoked_tokens --
-- Deletes revoked tokens that have expired since.
delete from runwire.revoked_tokens
 where ctid = any(array(
       select ctid from runwire.revoked_tokens
        where expires_at < (select runwire.now_v1()) - %(kept)s::interval
        order by expires_at limit %(limit)s for update skip locked));

-- delete_groups --
-- Deletes groups of concurrency keys that nothing waits or executes in any more.
delete from runwire.queue_groups
 where ctid = any(array(
       select g.ctid from runwire.queue_groups g
        where g.concurrency_key <> '' and not g.paused
          and g.last_served < (select runwire.now_v1()) - %(kept)s::interval
          and not exists (select from runwire.runs r
                           where r.environment_id = g.environment_id and r.queue = g.queue
                             and r.concurrency_key = g.concurrency_key
                             and r.status = 'QUEUED' and r.limited)
          and not exists (select from runwire.runs r
                           where r.environment_id = g.environment_id and r.queue = g.queue
                             and r.concurrency_key = g.concurrency_key
                             and r.status in ('DEQUEUED', 'EXECUTING'))
        limit %(limit)s for update skip locked));

-- delete_workers --
-- Deletes workers that stopped long ago.
delete from runwire.workers
 where ctid = any(array(
       select ctid from runwire.workers
        where stopped_at < (select runwire.now_v1()) - %(kept)s::interval
        limit %(limit)s for update skip locked));
