-- lock --
-- Keeps a run that begins to wait, and those of its targets whose end nobody waits for yet.
select id, status, execution, generation, parked_by, resuming,
       cancel_requested_at is not null as canceling
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
 order by id
   for no key update;

-- await_runs --
-- Notes that somebody waits for the end of runs that are locked.
update runwire.runs
   set awaited = true
 where environment_id = %(environment_id)s and id = any(%(targets)s::text[])
   and finished_at is null and not awaited;

-- note_targets --
-- Notes who waits for what is not a child of the waiting run.
insert into runwire.wait_targets (environment_id, target_id, run_id)
select %(environment_id)s, target, %(run_id)s
  from unnest(%(targets)s::text[]) as target
 order by target
    on conflict do nothing;

-- store --
-- Writes what a run's code asked for since it was last written; what is there already stays.
insert into runwire.waits
       (environment_id, run_id, generation, branch, ordinal, kind, target, open, run_ids,
        cached_ids, batch_id, waitpoint_id, stream_key, seq, due_at)
select %(environment_id)s, %(run_id)s, %(generation)s, s.branch, s.ordinal, s.kind, s.target, true,
       string_to_array(s.run_ids, ' '), string_to_array(s.cached_ids, ' '),
       s.batch_id, s.waitpoint_id, s.stream_key, s.seq,
       coalesce(s.due_at, clock.now + make_interval(secs => s.due_in))
  from (select runwire.now_v1() as now) as clock,
       unnest(%(branches)s::text[], %(ordinals)s::integer[], %(kinds)s::text[],
              %(step_targets)s::text[], %(run_ids)s::text[], %(cached_ids)s::text[],
              %(batch_ids)s::text[], %(waitpoint_ids)s::text[], %(stream_keys)s::text[],
              %(seqs)s::bigint[], %(dues)s::timestamptz[], %(dues_in)s::double precision[])
       as s (branch, ordinal, kind, target, run_ids, cached_ids, batch_id, waitpoint_id, stream_key,
             seq, due_at, due_in)
    on conflict do nothing;

-- keep_open --
-- Notes which waits of a run its code is still at.
update runwire.waits w
   set open = not w.open
 where w.environment_id = %(environment_id)s and w.run_id = %(run_id)s
   and w.generation = %(generation)s
   and w.open <> exists (
       select from unnest(%(open_branches)s::text[], %(open_ordinals)s::integer[])
                   as o (branch, ordinal)
        where o.branch = w.branch and o.ordinal = w.ordinal);

-- keep_marks --
-- Writes how far the branches of a run's code have come.
insert into runwire.checkpoints (environment_id, run_id, generation, marks)
values (%(environment_id)s, %(run_id)s, %(generation)s, %(marks)s)
    on conflict (environment_id, run_id) do update
   set generation = excluded.generation, marks = excluded.marks;

-- park --
-- Makes an executing run WAITING, unless one of its waits is over already or it shall be canceled.
with clock as materialized (
    select runwire.now_v1() as now
), open as materialized (
    select w.due_at, runwire.is_over_v1(w, clock.now) as is_over
      from runwire.waits w, clock
     where w.environment_id = %(environment_id)s and w.run_id = %(run_id)s
       and w.generation = %(generation)s and w.open
), changed as (
    update runwire.runs r
       set status = 'WAITING',
           revision = r.revision + 1,
           worker_id = null,
           parked_by = %(worker_id)s,
           waited = r.waited + 1,
           wake_at = (select min(due_at) from open),
           duration_ms = r.duration_ms + coalesce(
               (extract(epoch from clock.now - r.claimed_at) * 1000)::bigint, 0),
           active_ms = r.active_ms + coalesce(
               (extract(epoch from clock.now - r.claimed_at) * 1000)::bigint, 0),
           updated_at = clock.now
      from clock
     where r.environment_id = %(environment_id)s and r.id = %(run_id)s
       and r.execution = %(execution)s and r.status || '' = 'EXECUTING'
       and r.cancel_requested_at is null
       and not exists (select from open where is_over)
    returning r.*
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select bucket, environment_id, id, revision, 'waiting',
           concat('{"set":{"status":"WAITING","workerId":null,"durationMs":', duration_ms, '}}'),
           updated_at, task, tags, batch_id
      from changed
)
select c.queue, c.limited, extract(epoch from c.wake_at - clock.now)::double precision as due_in
  from changed c, clock;

-- note_journal --
-- Notes that a run that was never WAITING has a journal all the same.
update runwire.runs
   set waited = 1
 where environment_id = %(environment_id)s and id = %(run_id)s and waited = 0;

-- over --
-- Which waits that runs are still at are over.
select w.run_id, w.branch, w.ordinal
  from runwire.runs r
  join runwire.waits w
    on w.environment_id = r.environment_id and w.run_id = r.id and w.generation = r.generation
 where r.environment_id = %(environment_id)s and r.id = any(%(ids)s::text[])
   and w.run_id = any(%(ids)s::text[]) and w.open and runwire.is_over_v1(w, runwire.now_v1());

-- journal --
-- What a run's code asked for in its generation, in order.
select branch, ordinal, kind, target, run_ids, cached_ids, batch_id, waitpoint_id, stream_key, seq,
       due_at, kind = 'trigger' or runwire.is_over_v1(w, runwire.now_v1()) as is_over
  from runwire.waits w
 where environment_id = %(environment_id)s and run_id = %(run_id)s and generation = %(generation)s
 order by branch, ordinal;

-- marks --
-- How far the branches of a run's code had come.
select marks
  from runwire.checkpoints
 where environment_id = %(environment_id)s and run_id = %(run_id)s and generation = %(generation)s;

-- results --
-- How runs ended.
select id, task, status, output, output_type, error
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[]);

-- forget --
-- Deletes what runs that are over asked for.
with gone as (
    delete from runwire.waits
     where environment_id = any(%(environment_ids)s::integer[]) and run_id = any(%(ids)s::text[])
), unmarked as (
    delete from runwire.checkpoints
     where environment_id = any(%(environment_ids)s::integer[]) and run_id = any(%(ids)s::text[])
)
delete from runwire.wait_targets
 where environment_id = any(%(environment_ids)s::integer[]) and run_id = any(%(ids)s::text[]);

-- take_wakes --
-- Takes the oldest facts whose waiters are to be looked at.
select environment_id, target_id
  from runwire.wakes
 order by created_at
 limit %(limit)s
   for update skip locked;

-- take_wakes_of --
-- Takes these facts, by key: behind a hundred thousand others they are not looked for.
select environment_id, target_id
  from runwire.wakes
 where environment_id = any(%(environment_ids)s::integer[]) and target_id = any(%(targets)s::text[])
 limit %(limit)s
   for update skip locked;

-- waiters --
-- The runs that may wait for these facts: parents of runs, and whoever is noted.
select r.environment_id, r.parent_id as run_id
  from runwire.runs r
 where r.environment_id = any(%(environment_ids)s::integer[]) and r.id = any(%(targets)s::text[])
   and r.parent_id is not null
union
select t.environment_id, t.run_id
  from runwire.wait_targets t
 where t.environment_id = any(%(environment_ids)s::integer[])
   and t.target_id = any(%(targets)s::text[]);

-- note_input --
-- Leaves wakes of runs that wait for input, of those that were just sent some; under their locks.
insert into runwire.wakes (environment_id, target_id)
select %(environment_id)s, sent.id
  from unnest(%(ids)s::text[]) as sent (id)
 where exists (
       select from runwire.waits w
        where w.environment_id = %(environment_id)s and w.run_id = sent.id
          and w.run_id = any(%(ids)s::text[]) and w.open and w.kind = 'input')
 order by sent.id
    on conflict do nothing
returning target_id;

-- input --
-- What a wait for input was answered with: the chunk that it waited for, if that came in time.
select c.body
  from (select w.environment_id, w.run_id, w.stream_key, w.seq, w.due_at
          from runwire.waits w
         where w.environment_id = %(environment_id)s and w.run_id = %(run_id)s
           and w.generation = %(generation)s and w.branch = %(branch)s and w.ordinal = %(ordinal)s
         limit 1) as w
 cross join lateral (
       select s.id, s.bucket
         from runwire.streams s
        where s.environment_id = w.environment_id and s.run_id = w.run_id and s.key = w.stream_key
        limit 1) as s
 cross join lateral (
       select c.body, c.created_at
         from runwire.stream_chunks c
        where c.bucket = s.bucket and c.stream_id = s.id and c.seq = w.seq
        limit 1) as c
 where w.due_at is null or c.created_at <= w.due_at;

-- drop_wakes --
-- Drops facts whose waiters were looked at.
delete from runwire.wakes
 where environment_id = any(%(environment_ids)s::integer[]) and target_id = any(%(targets)s::text[]);

-- due --
-- The next runs whose waits end by time, of one environment or of all, and in how many seconds.
select next.environment_id, next.id,
       extract(epoch from next.wake_at - runwire.now_v1())::double precision as seconds
  from runwire.environments e
 cross join lateral (
       select r.environment_id, r.id, r.wake_at
         from runwire.runs r
        where r.environment_id = e.id and r.status = 'WAITING' and r.wake_at is not null
        order by r.wake_at
        limit %(limit)s) as next
 where %(environment_id)s::integer is null or e.id = %(environment_id)s
 order by next.wake_at
 limit %(limit)s;

-- lock_waiters --
-- Keeps runs that may have to go on; by key, in the order of locks.
select environment_id, id, status
  from runwire.runs
 where environment_id = any(%(environment_ids)s::integer[]) and id = any(%(ids)s::text[])
   and finished_at is null
 order by id
   for no key update;

-- resume --
-- Queues locked runs of which a wait is over (or of which something else goes on: `anyway`). They
-- keep their place in the order of their queue. The worker where the code waits, if it lives, has
-- the first claim.
with clock as materialized (
    select runwire.now_v1() as now
), changed as (
    update runwire.runs r
       set status = 'QUEUED',
           revision = r.revision + 1,
           resuming = true,
           wake_at = null,
           parked_by = (select w.id
                          from runwire.workers w
                         where w.id = r.parked_by and w.stopped_at is null
                           and w.expires_at > clock.now),
           queued_at = clock.now,
           limited = exists (select from runwire.queue_groups g
                              where g.environment_id = r.environment_id and g.queue = r.queue
                                and g.concurrency_key = ''),
           updated_at = clock.now
      from clock
     where r.environment_id = any(%(environment_ids)s::integer[]) and r.id = any(%(ids)s::text[])
       and r.status || '' = 'WAITING'
       and (%(anyway)s or exists (
            select from runwire.waits w
             where w.environment_id = r.environment_id and w.run_id = r.id
               and w.generation = r.generation and w.open
               and runwire.is_over_v1(w, clock.now)))
    returning r.*
), grouped as (
    insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit)
    select distinct c.environment_id, c.queue, c.concurrency_key, base.concurrency_limit
      from changed c
      join runwire.queue_groups base
        on base.environment_id = c.environment_id and base.queue = c.queue
       and base.concurrency_key = ''
     where c.limited and c.concurrency_key <> ''
     order by 1, 2, 3
        on conflict do nothing
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select bucket, environment_id, id, revision, 'queued',
           concat('{"set":{"status":"QUEUED","queuedAt":"', runwire.wire_time_v2(queued_at), '"}}'),
           updated_at, task, tags, batch_id
      from changed
)
select environment_id, id, queue from changed;

-- unresolved --
-- Of WAITING runs, those none of whose waits is over: nothing is to be done for them.
select r.environment_id, r.id
  from runwire.runs r, (select runwire.now_v1() as now) as clock
 where r.environment_id = any(%(environment_ids)s::integer[]) and r.id = any(%(ids)s::text[])
   and r.status || '' = 'WAITING'
   and not exists (
       select from runwire.waits w
        where w.environment_id = r.environment_id and w.run_id = r.id
          and w.generation = r.generation and w.open and runwire.is_over_v1(w, clock.now));

-- parked --
-- Which runs still wait for what is parked here: by their execution.
select id
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
   and ((parked_by = %(worker_id)s and status in ('WAITING', 'QUEUED')
         and execution = (select e.execution
                            from unnest(%(ids)s::text[], %(executions)s::integer[])
                                 as e (id, execution)
                           where e.id = runs.id))
        -- Claimed, and the answer is on its way.
        or (worker_id = %(worker_id)s and status in ('DEQUEUED', 'EXECUTING')));
