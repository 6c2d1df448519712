-- cancel --
-- Cancels runs at once where no worker holds them, else asks for it, once.
with clock as (
    select runwire.now_v1() as now
), changed as (
    update runwire.runs r
       set status = case when r.worker_id is null then 'CANCELED' else r.status end,
           finished_at = case when r.worker_id is null then clock.now end,
           error = null,
           cancel_requested_at = clock.now,
           revision = r.revision + 1,
           updated_at = clock.now
      from clock
     where r.environment_id = any(%(environment_ids)s::integer[]) and r.id = any(%(ids)s::text[])
       and r.finished_at is null
       and (r.worker_id is null or r.cancel_requested_at is null)
    returning r.*
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select bucket, environment_id, id, revision,
           case when finished_at is null then 'canceling' else 'final' end,
           concat('{"set":{"status":"', status, '","cancelRequestedAt":"',
                  runwire.wire_time_v2(cancel_requested_at), '","error":null',
                  ',"finishedAt":"' || runwire.wire_time_v2(finished_at) || '"', '}}'),
           updated_at, task, tags, batch_id
      from changed
)
select environment_id, id, status, queue, limited,
       stream_keys || reserved_stream_keys as stream_keys, idempotency_key, awaited, waited,
       parked_by
  from changed;

-- take --
-- Takes canceled runs that may have children left, longest ago first, past those others are at.
select environment_id, run_id
  from runwire.cancellations
 order by created_at
 limit %(limit)s
   for update skip locked;

-- lock_children --
-- Keeps children of runs that are neither over nor asked to end, a bounded number, in the order in
-- which everybody locks runs.
select r.environment_id, r.id
  from (select child.environment_id, child.id
          from unnest(%(environment_ids)s::integer[], %(parents)s::text[])
               as parent (environment_id, id)
         cross join lateral (
               select c.environment_id, c.id
                 from runwire.runs c
                where c.environment_id = parent.environment_id and c.parent_id = parent.id
                  and c.finished_at is null
                  and (c.worker_id is null or c.cancel_requested_at is null)
                limit %(limit)s) as child
         order by child.environment_id, child.id
         limit %(limit)s) as found
 cross join lateral (
       select r.environment_id, r.id
         from runwire.runs r
        where r.environment_id = found.environment_id and r.id = found.id
          for no key update) as r;

-- drop --
-- Drops canceled runs whose children are canceled.
delete from runwire.cancellations c
 using unnest(%(environment_ids)s::integer[], %(parents)s::text[]) as done (environment_id, run_id)
 where c.environment_id = any(%(environment_ids)s::integer[])
   and c.run_id = any(%(parents)s::text[])
   and c.environment_id = done.environment_id and c.run_id = done.run_id;
