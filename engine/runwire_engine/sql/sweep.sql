-- make_partitions --
-- Makes the partitions of today and the days ahead.
select runwire.make_partitions_v1(today, today + %(days)s::integer) as made
  from (select (runwire.now_v1() at time zone 'UTC')::date as today) as clock;

-- notification_queue --
-- How full the queue of notifications is; asking also cleans up behind dead listeners.
select pg_notification_queue_usage() as usage;

-- delete_request_keys --
-- Deletes the keys of calls that nobody repeats any more.
delete from runwire.request_keys
 where ctid = any(array(
       select ctid from runwire.request_keys
        where created_at < runwire.now_v1() - %(kept)s::interval
        order by created_at limit %(limit)s for update skip locked));

-- delete_writers --
-- Deletes the numbers of flushers that are gone.
delete from runwire.writers
 where ctid = any(array(
       select ctid from runwire.writers
        where updated_at < runwire.now_v1() - %(kept)s::interval
        order by updated_at limit %(limit)s for update skip locked));

-- delete_idempotency_keys --
-- Deletes idempotency keys that expired.
delete from runwire.idempotency_keys
 where ctid = any(array(
       select ctid from runwire.idempotency_keys
        where expires_at < runwire.now_v1() - %(kept)s::interval
        order by expires_at limit %(limit)s for update skip locked));

-- delete_used_tokens --
-- Deletes used one-time tokens that have expired since.
delete from runwire.used_tokens
 where ctid = any(array(
       select ctid from runwire.used_tokens
        where expires_at < runwire.now_v1() - %(kept)s::interval
        limit %(limit)s for update skip locked));

-- delete_revoked_tokens --
-- Deletes revoked tokens that have expired since.
delete from runwire.revoked_tokens
 where ctid = any(array(
       select ctid from runwire.revoked_tokens
        where expires_at < runwire.now_v1() - %(kept)s::interval
        limit %(limit)s for update skip locked));

-- delete_groups --
-- Deletes groups of concurrency keys that nothing waits or executes in any more.
delete from runwire.queue_groups
 where ctid = any(array(
       select g.ctid from runwire.queue_groups g
        where g.concurrency_key <> '' and not g.paused
          and g.last_served < runwire.now_v1() - %(kept)s::interval
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
        where stopped_at < runwire.now_v1() - %(kept)s::interval
        limit %(limit)s for update skip locked));
