-- register --
-- Gives a worker its first lease.
insert into runwire.workers
       (id, environment_id, started_at, expires_at, host, process_id, version, declares)
select %(id)s, %(environment_id)s, clock.now, clock.now + make_interval(secs => %(lease)s),
       %(host)s, %(process_id)s, %(version)s, %(declares)s::text[]
  from (select runwire.now_v1() as now) as clock
    on conflict (id) do update set expires_at = excluded.expires_at
 where workers.stopped_at is null;

-- heartbeat --
-- Renews a lease, unless the worker was counted as dead.
update runwire.workers
   set expires_at = runwire.now_v1() + make_interval(secs => %(lease)s)
 where id = %(id)s and stopped_at is null
returning id;

-- stop --
-- Ends a lease; waits for a claim of the worker that is under way.
with worker as materialized (
    select id from runwire.workers where id = %(id)s and stopped_at is null for update
)
update runwire.workers w
   set stopped_at = runwire.now_v1()
  from worker
 where w.id = worker.id;

-- bury --
-- Marks workers dead whose lease ran out.
with dead as materialized (
    select id
      from runwire.workers
     where stopped_at is null and expires_at < runwire.now_v1()
     order by expires_at
     limit %(limit)s
       for update skip locked
)
update runwire.workers w
   set stopped_at = runwire.now_v1()
  from dead
 where w.id = dead.id
returning w.id;

-- held --
-- What workers hold.
select environment_id, id, execution
  from runwire.runs
 where worker_id = any(%(ids)s::text[]) and status in ('DEQUEUED', 'EXECUTING');

-- cancel_requests --
-- What a worker holds that shall be canceled.
select id
  from runwire.runs
 where worker_id = %(id)s and status in ('DEQUEUED', 'EXECUTING')
   and cancel_requested_at is not null;

-- orphans --
-- Runs still held by workers that were stopped.
select r.environment_id, r.id, r.execution
  from runwire.workers w
 cross join lateral (
       select environment_id, id, execution
         from runwire.runs
        where worker_id = w.id and status in ('DEQUEUED', 'EXECUTING')
        limit %(limit)s) as r
 where w.stopped_at is not null
 limit %(limit)s;

-- overdue_cancels --
-- Runs that were asked to stop and have not.
select environment_id, id, execution
  from runwire.runs
 where status in ('DEQUEUED', 'EXECUTING')
   and cancel_requested_at < runwire.now_v1() - make_interval(secs => %(grace)s)
 limit %(limit)s
   for no key update skip locked;

-- expire --
-- Ends runs whose ttl passed before they started.
with clock as materialized (
    select runwire.now_v1() as now
), due as (
    select r.environment_id, r.id
      from runwire.runs r
     where r.status in ('DELAYED', 'QUEUED', 'PENDING_VERSION')
       and r.expires_at <= (select now from clock)
     order by r.expires_at
     limit %(limit)s
       for no key update of r skip locked
), changed as (
    update runwire.runs r
       set status = 'EXPIRED', revision = r.revision + 1, expired_at = clock.now,
           finished_at = clock.now, updated_at = clock.now
      from clock
     where r.environment_id = any(array(select environment_id from due))
       and r.id = any(array(select id from due))
    returning r.*
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select bucket, environment_id, id, revision, 'final',
           concat('{"set":{"status":"EXPIRED","expiredAt":"', runwire.wire_time_v2(expired_at),
                  '","finishedAt":"', runwire.wire_time_v2(finished_at), '"}}'),
           updated_at, task, tags, batch_id
      from changed
)
select environment_id, id, status, queue, limited,
       stream_keys || reserved_stream_keys as stream_keys, idempotency_key, awaited, waited
  from changed;
