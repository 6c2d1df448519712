-- A statement keeps the plan it got when its tables were empty, until somebody analyzes them. So
-- growing tables are reached by key: by `= any`, or laterally with a limit, which no planner turns
-- into a join over the whole table.

-- retrieve --
-- Runs by id, with their metadata.
select r.*, m.body as metadata
  from runwire.runs r
  left join lateral (
       select body from runwire.run_metadata m
        where m.environment_id = r.environment_id and m.run_id = r.id
        limit 1) as m on true
 where r.environment_id = %(environment_id)s and r.id = any(%(ids)s::text[]);

-- events --
-- The revisions of a run; its bucket prunes to one partition.
select environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id
  from runwire.run_events
 where bucket = (select bucket from runwire.runs
                  where environment_id = %(environment_id)s and id = %(run_id)s)
   and environment_id = %(environment_id)s and run_id = %(run_id)s
 order by revision
 limit %(limit)s;

-- make_partitions --
-- Makes the partitions of today and tomorrow, should nobody have made them ahead.
select runwire.make_partitions_v2(today, today + 1)
  from (select (runwire.now_v1() at time zone 'UTC')::date as today) as clock;

-- lock --
-- Keeps a run for a change.
select status, tags, execution, status in ('EXECUTING', 'WAITING') as executing
  from runwire.runs
 where environment_id = %(environment_id)s and id = %(run_id)s
   for no key update;

-- add_tags --
-- Adds tags to a run that is locked; the event goes to the feeds of old and new tags.
with changed as (
    update runwire.runs
       set tags = tags || %(tags)s::text[], revision = revision + 1, updated_at = runwire.now_v1()
     where environment_id = %(environment_id)s and id = %(run_id)s
    returning *
), listed as (
    insert into runwire.run_tags (environment_id, tag, created_at, run_id)
    select c.environment_id, tag, c.created_at, c.id
      from changed c cross join unnest(%(tags)s::text[]) as tag
        on conflict do nothing
)
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
select bucket, environment_id, id, revision, 'tags',
       json_build_object('set', json_build_object('tags', to_json(tags)))::text,
       updated_at, task, tags, batch_id
  from changed;

-- reschedule --
-- Gives a run that waits for its first attempt another time; one that has passed is now.
with clock as materialized (
    select at.now, greatest(coalesce(%(until)s::timestamptz,
                                     at.now + make_interval(secs => %(delay)s)), at.now) as due
      from (select runwire.now_v1() as now) as at
), changed as (
    update runwire.runs r
       set delayed_until = clock.due,
           sort_at = clock.due - make_interval(secs => r.priority),
           expires_at = clock.due + make_interval(secs => r.ttl),
           revision = r.revision + 1,
           updated_at = clock.now
      from clock
     where r.environment_id = %(environment_id)s and r.id = %(run_id)s
       and r.status || '' = 'DELAYED' and r.execution = 0  -- a look-up by id
    returning r.*
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select bucket, environment_id, id, revision, 'delayed',
           concat('{"set":{"delayedUntil":"', runwire.wire_time_v2(delayed_until), '"}}'),
           updated_at, task, tags, batch_id
      from changed
)
select id from changed;

-- reset_key --
-- Frees an idempotency key that is held.
delete from runwire.idempotency_keys
 where environment_id = %(environment_id)s and task = %(task)s and key = %(key)s
   and expires_at > runwire.now_v1();
