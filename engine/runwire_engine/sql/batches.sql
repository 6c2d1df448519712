-- claim_key --
-- Claims the idempotency key of a batch if it is free or expired; batches are the task ''.
insert into runwire.idempotency_keys as k
       (environment_id, task, key, run_id, created_at, expires_at)
select %(environment_id)s, '', %(key)s, %(id)s, clock.now,
       clock.now + make_interval(secs => %(ttl)s)
  from (select runwire.now_v1() as now) as clock
    on conflict (environment_id, task, key) do update
   set run_id = excluded.run_id, created_at = excluded.created_at,
       expires_at = excluded.expires_at
 where k.expires_at <= excluded.created_at
returning run_id;

-- held_key --
-- The batch that an idempotency key leads to.
select run_id
  from runwire.idempotency_keys
 where environment_id = %(environment_id)s and task = '' and key = %(key)s;

-- create --
-- Makes a batch; one of no items is complete.
insert into runwire.batches
       (environment_id, id, run_count, sealed, parent_id, idempotency_key, created_at, updated_at)
select %(environment_id)s, %(id)s, %(run_count)s, %(run_count)s = 0, %(parent_id)s,
       %(idempotency_key)s, clock.now, clock.now
  from (select runwire.now_v1() as now) as clock
    on conflict do nothing;

-- lock --
-- Keeps a batch while items are added.
select id, run_count, sealed
  from runwire.batches
 where environment_id = %(environment_id)s and id = %(batch_id)s
   for no key update;

-- items --
-- Which of these items are in, and as which runs.
select index, run_id
  from runwire.batch_items
 where environment_id = %(environment_id)s and batch_id = %(batch_id)s
   and index = any(%(indexes)s::integer[]);

-- seal --
-- Seals a batch whose items are all in; returns nothing otherwise, or if it was sealed before.
update runwire.batches b
   set sealed = true, updated_at = runwire.now_v1()
 where b.environment_id = %(environment_id)s and b.id = %(batch_id)s and not b.sealed
   and b.run_count <= (select count(*) from runwire.batch_items i
                        where i.environment_id = b.environment_id and i.batch_id = b.id)
returning b.id;

-- count --
-- How many items are in.
select count(*) as items
  from runwire.batch_items
 where environment_id = %(environment_id)s and batch_id = %(batch_id)s;

-- retrieve --
-- A batch, its runs by index, and what they make of its status.
select b.environment_id, b.id, b.run_count, b.sealed, b.parent_id, b.idempotency_key,
       b.created_at, b.updated_at,
       case when not b.sealed then 'PENDING'
            when items.unfinished > 0 then 'PROCESSING'
            when items.failed > 0 then 'PARTIAL_FAILED'
            else 'COMPLETED' end as status,
       items.run_ids
  from runwire.batches b
 cross join lateral (
       select coalesce(array_agg(i.run_id order by i.index), '{}') as run_ids,
              count(*) filter (where r.finished_at is null) as unfinished,
              count(*) filter (where r.finished_at is not null
                                 and r.status not in ('COMPLETED', 'CANCELED')) as failed
         from runwire.batch_items i
        cross join lateral (
              select finished_at, status
                from runwire.runs
               where environment_id = i.environment_id and id = i.run_id
               limit 1) as r
        where i.environment_id = b.environment_id and i.batch_id = b.id
     ) as items
 where b.environment_id = %(environment_id)s and b.id = %(batch_id)s;
