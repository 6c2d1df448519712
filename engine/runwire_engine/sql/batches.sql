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

-- claim_request --
-- Claims the key of a call that nobody has answered yet; waits for whoever is answering it.
insert into runwire.request_keys (environment_id, operation, key, target_id, created_at)
values (%(environment_id)s, 'batch', %(request_key)s, %(id)s, runwire.now_v1())
    on conflict do nothing
returning target_id;

-- answered_request --
-- The batch that a call was answered with before, and whether it was an earlier one even then.
select k.target_id, coalesce(b.created_at < k.created_at, false) as is_cached
  from runwire.request_keys k
  left join runwire.batches b on b.environment_id = k.environment_id and b.id = k.target_id
 where k.environment_id = %(environment_id)s and k.operation = 'batch'
   and k.key = %(request_key)s;

-- move_request --
-- Points a call at the earlier batch that it led to.
update runwire.request_keys
   set target_id = %(target_id)s
 where environment_id = %(environment_id)s and operation = 'batch' and key = %(request_key)s;

-- create --
-- Makes a batch; one of no items is complete, unless their number comes last.
insert into runwire.batches
       (environment_id, id, run_count, is_open, sealed, parent_id, idempotency_key, created_at,
        updated_at)
select %(environment_id)s, %(id)s, %(run_count)s, %(is_open)s, %(run_count)s = 0, %(parent_id)s,
       %(idempotency_key)s, clock.now, clock.now
  from (select runwire.now_v1() as now) as clock
    on conflict do nothing;

-- lock --
-- Keeps a batch while items are added.
select id, run_count, is_open, sealed, errors
  from runwire.batches
 where environment_id = %(environment_id)s and id = %(batch_id)s
   for no key update;

-- items --
-- Which of these items are in, and as which runs.
select index, run_id
  from runwire.batch_items
 where environment_id = %(environment_id)s and batch_id = %(batch_id)s
   and index = any(%(indexes)s::integer[]);

-- end --
-- Says that a batch has the items that are in and no more, unless it is sealed.
update runwire.batches b
   set is_open = false, updated_at = runwire.now_v1(),
       run_count = (select count(*) from runwire.batch_items i
                     where i.environment_id = b.environment_id and i.batch_id = b.id)
 where b.environment_id = %(environment_id)s and b.id = %(batch_id)s and not b.sealed;

-- forget_key --
-- Frees the idempotency key of a batch that was given up.
delete from runwire.idempotency_keys
 where environment_id = %(environment_id)s and run_id = %(batch_id)s;

-- note_errors --
-- Notes which items were refused.
update runwire.batches
   set errors = %(errors)s, updated_at = runwire.now_v1()
 where environment_id = %(environment_id)s and id = %(batch_id)s;

-- seal --
-- Seals a batch whose items are all in; returns nothing otherwise, or if it was sealed before.
update runwire.batches b
   set sealed = true, updated_at = runwire.now_v1()
 where b.environment_id = %(environment_id)s and b.id = %(batch_id)s
   and not b.sealed and not b.is_open
   and b.run_count <= (select count(*) from runwire.batch_items i
                        where i.environment_id = b.environment_id and i.batch_id = b.id)
returning b.id;

-- abandoned --
-- Keeps batches to which nothing was added for so long, a bounded number, past those that others are
-- at; not those of a run that may go on with them. With the first index that is missing.
select b.environment_id, b.id, b.errors,
       (select min(place)
          from generate_series(0, %(most)s::integer) as place
         where not exists (select from runwire.batch_items i
                            where i.environment_id = b.environment_id and i.batch_id = b.id
                              and i.index = place)) as missing
  from runwire.batches b
 where not b.sealed and b.updated_at < runwire.now_v1() - %(quiet)s::interval
   and not exists (
       select from runwire.batch_items i
        cross join lateral (
              select from runwire.runs r
               where r.environment_id = i.environment_id and r.id = i.run_id
                 and r.created_at > runwire.now_v1() - %(quiet)s::interval
               limit 1) as young
        where i.environment_id = b.environment_id and i.batch_id = b.id)
   and not exists (
       select from runwire.runs r
        where r.environment_id = b.environment_id and r.id = b.parent_id
          and r.finished_at is null)
 order by b.updated_at
 limit %(limit)s
   for no key update skip locked;

-- count --
-- How many items are in.
select count(*) as items
  from runwire.batch_items
 where environment_id = %(environment_id)s and batch_id = %(batch_id)s;

-- retrieve --
-- A batch, its runs by index, and what they make of its status.
select b.environment_id, b.id, b.sealed, b.parent_id, b.idempotency_key, b.created_at,
       b.updated_at, b.errors,
       case when b.is_open then cardinality(items.run_ids) else b.run_count end as run_count,
       case when not b.sealed then 'PENDING'
            when items.unfinished > 0 then 'PROCESSING'
            when b.errors <> '[]' then 'ABORTED'
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
