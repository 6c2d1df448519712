-- retrieve --
-- The metadata of a run.
select body
  from runwire.run_metadata
 where environment_id = %(environment_id)s and run_id = %(run_id)s;

-- lock_runs --
-- Keeps runs for this transaction; closed: final for so long that metadata stands still too.
select id, status, execution, revision,
       coalesce(finished_at < runwire.now_v1() - interval '1 hour', false) as closed
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
 order by id
   for no key update;

-- documents --
-- The metadata of runs that are locked; a statement of its own, so that it sees what the last
-- holder of the lock committed.
select run_id, body
  from runwire.run_metadata
 where environment_id = %(environment_id)s and run_id = any(%(ids)s::text[]);

-- write --
-- Stores documents, with a revision and an event for each run.
with new as (
    select *
      from unnest(%(run_ids)s::text[], %(bodies)s::text[], %(deltas)s::text[])
           as new (run_id, body, delta)
), kept as (
    insert into runwire.run_metadata (environment_id, run_id, body)
    select %(environment_id)s, run_id, body from new
        on conflict (environment_id, run_id) do update set body = excluded.body
), changed as (
    update runwire.runs r
       set revision = r.revision + 1, updated_at = runwire.now_v1()
      from new
     -- By key as well as by the join: a plan made while the table was small stays good.
     where r.environment_id = %(environment_id)s and r.id = new.run_id
       and r.id = any(%(run_ids)s::text[])
    returning r.bucket, r.id, r.revision, r.updated_at, r.task, r.tags, r.batch_id, new.delta
)
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
select bucket, %(environment_id)s, id, revision, 'metadata', delta, updated_at, task, tags, batch_id
  from changed;
