-- lock_groups --
-- Locks groups that have ready runs of these tasks and seem to have room, those first that have had
-- the fewest turns, then those that have waited longest: since they were served last or, where
-- nothing was left then, since their next run was queued. Such a group has had as many turns as those
-- with a backlog that were not served since; one that its limit held up catches up on three at most.
-- One that would be ahead of another key of its queue by more than its limit comes after all others,
-- unless that other key is held up by its limit for longer than a moment.
-- Hops along the index of ready runs, so idle groups cost nothing, and takes no more than `reach` keys
-- of a queue, from after its cursor on. One row at least: with how many seemed to have room, where
-- each queue of more keys goes on, and what is ready but has no group.
with recursive ready (queue, concurrency_key, place, concurrency_limit, is_open) as (
    select ''::text, ''::text, 0, null::integer, false
    union all
    select hop.*
      from ready
     cross join lateral (
           (select ready.queue, r.concurrency_key, ready.place + 1, ready.concurrency_limit, true
              from runwire.runs r
             where r.environment_id = %(environment_id)s and r.status = 'QUEUED' and r.limited
               and r.queue = ready.queue and r.concurrency_key > ready.concurrency_key
               and ready.is_open and ready.place < %(reach)s
             order by r.concurrency_key
             limit 1)
           union all
           -- Place 0 is a cursor: what comes after it counts. A closed queue is seen once.
           (select next.queue, coalesce(cursor.concurrency_key, next.concurrency_key),
                   case when cursor.queue is null then 1 else 0 end, base.concurrency_limit,
                   coalesce(not base.paused and base.concurrency_limit > 0, false)
              from (select r.queue, r.concurrency_key
                      from runwire.runs r
                     where r.environment_id = %(environment_id)s and r.status = 'QUEUED'
                       and r.limited and r.queue > ready.queue
                     order by r.queue, r.concurrency_key
                     limit 1) as next
              left join lateral (
                   select g.concurrency_limit, g.paused
                     from runwire.queue_groups g
                    where g.environment_id = %(environment_id)s and g.queue = next.queue
                      and g.concurrency_key = ''
                    limit 1) as base on true
              left join unnest(%(cursor_queues)s::text[], %(cursor_keys)s::text[])
                        as cursor (queue, concurrency_key) on cursor.queue = next.queue)
           limit 1) as hop
), seen as materialized (
    select ready.*, g.last_served, g.turns, g.paused as is_paused
      from ready
      left join lateral (
           select g.last_served, g.turns, g.paused
             from runwire.queue_groups g
            where g.environment_id = %(environment_id)s and g.queue = ready.queue
              and g.concurrency_key = ready.concurrency_key
            limit 1) as g on true
     where ready.place > 0
       and not exists (select
                         from unnest(%(held_queues)s::text[], %(held_keys)s::text[])
                              as held (queue, concurrency_key)
                        where held.queue = ready.queue
                          and held.concurrency_key = ready.concurrency_key)
), heads as materialized (
    select seen.*, head.sort_at, head.sort_at <= seen.last_served as has_backlog
      from seen
     cross join lateral (
           select r.sort_at
             from runwire.runs r
            where r.environment_id = %(environment_id)s and r.queue = seen.queue
              and r.concurrency_key = seen.concurrency_key and r.status = 'QUEUED' and r.limited
              and r.task = any(%(tasks)s::text[])
              -- The worker where its code waits comes first, for a second.
              and (r.parked_by is null or r.parked_by = %(worker_id)s
                   or r.queued_at < runwire.now_v1() - interval '1 second')
            order by r.sort_at, r.id
            limit 1) as head
), backlogs as materialized (
    select turns, last_served from heads where has_backlog
), bounds as materialized (
    select min(turns) as fewest, max(turns) as most from backlogs
), standings as materialized (
    select h.queue, h.concurrency_key, h.concurrency_limit, h.last_served,
           greatest(h.last_served, h.sort_at) as waits_since,
           case when h.has_backlog then greatest(h.turns, bounds.most - 3)
                else coalesce((select max(b.turns) from backlogs b where b.last_served <= h.sort_at),
                              bounds.fewest, 0) end as turns,
           h.concurrency_limit > (
           select count(*)
             from (select from runwire.runs r
                    where r.environment_id = %(environment_id)s and r.queue = h.queue
                      and r.concurrency_key = h.concurrency_key
                      and r.status in ('DEQUEUED', 'EXECUTING')
                    limit h.concurrency_limit) as executing) as has_room
      from heads h cross join bounds
     where h.is_open and not h.is_paused
), open as materialized (
    select ranked.*, coalesce(turns - fewest >= concurrency_limit, false) as is_ahead
      from (select standings.*,
                   min(turns) filter (where has_room
                                         or last_served > runwire.now_v1() - interval '200 ms')
                       over (partition by queue) as fewest
              from standings) as ranked
     where has_room
), locked as materialized (
    select g.queue, g.concurrency_key, open.concurrency_limit, open.turns,
           -- Somebody else served it between our look and our lock: its turn is over.
           g.last_served <> open.last_served as is_served
      from open
      join runwire.queue_groups g
        on g.environment_id = %(environment_id)s and g.queue = open.queue
       and g.concurrency_key = open.concurrency_key
     order by open.is_ahead, open.turns, open.waits_since, g.queue, g.concurrency_key
     limit %(slots)s
       for no key update of g skip locked
)
select locked.queue, locked.concurrency_key, locked.concurrency_limit, locked.turns,
       locked.is_served, (select count(*) from open) as open_groups, looked.*
  from (select array_agg(queue) filter (where place = %(reach)s) as cursor_queues,
               array_agg(concurrency_key) filter (where place = %(reach)s) as cursor_keys,
               array_agg(queue) filter (where last_served is null or concurrency_limit is null)
                   as unmade_queues,
               array_agg(concurrency_key) filter (where last_served is null
                                                     or concurrency_limit is null) as unmade_keys
          from seen) as looked
  left join locked on true;

-- pick_limited --
-- Picks the next runs of groups that are locked, in turns: no more than each has room for, nor more
-- than so many, as others wait that somebody else is serving.
with groups as materialized (
    select g.place, g.queue, g.concurrency_key,
           g.concurrency_limit - (
               select count(*)
                 from runwire.runs r
                where r.environment_id = %(environment_id)s and r.queue = g.queue
                  and r.concurrency_key = g.concurrency_key
                  and r.status in ('DEQUEUED', 'EXECUTING')) as room
      from unnest(%(queues)s::text[], %(keys)s::text[], %(limits)s::integer[])
           with ordinality as g (queue, concurrency_key, concurrency_limit, place)
), heads as (
    select head.id, g.place,
           row_number() over (partition by g.place order by head.sort_at, head.id) as turn
      from groups g
     cross join lateral (
           select r.id, r.sort_at
             from runwire.runs r
            where r.environment_id = %(environment_id)s and r.queue = g.queue
              and r.concurrency_key = g.concurrency_key and r.status = 'QUEUED' and r.limited
              and r.task = any(%(tasks)s::text[])
              and (r.parked_by is null or r.parked_by = %(worker_id)s
                   or r.queued_at < runwire.now_v1() - interval '1 second')
              and (r.expires_at is null or r.expires_at > runwire.now_v1())
            order by r.sort_at, r.id
            limit greatest(0, least(g.room, %(turns)s::bigint))) as head
), chosen as materialized (
    select id, turn, place from heads order by turn, place limit %(slots)s
)
select locked.id
  from chosen
 cross join lateral (
       select r.id
         from runwire.runs r
        where r.environment_id = %(environment_id)s and r.id = chosen.id
          and r.status || '' = 'QUEUED'  -- no partial index: this is a look-up by id
          for no key update skip locked) as locked
 order by chosen.turn, chosen.place;

-- take --
-- Gives runs to a worker whose lease holds: those picked of groups, and up to so many ready runs of
-- unlimited queues, longest waiting first, past those that others are taking. Of a queue that has just
-- got a limit it only says so: its runs are to go through groups now. The lock on the worker's row
-- keeps the sweep away. One row at least: with those queues, and whether any runs wait in groups.
with clock as materialized (
    select runwire.now_v1() as now
), heads as materialized (
    select head.id, head.sort_at
      from unnest(%(tasks)s::text[]) as wanted (task)
     cross join lateral (
           select r.id, r.sort_at
             from runwire.runs r
            where r.environment_id = %(environment_id)s and r.task = wanted.task
              and r.status = 'QUEUED' and not r.limited and %(slots)s > 0
            order by r.sort_at, r.id
            limit %(reach)s) as head
     order by head.sort_at, head.id
     limit %(reach)s
), picked as materialized (
    select locked.id, locked.queue, locked.is_limited
      from heads
     cross join lateral (
           select r.id, r.queue,
                  exists (select from runwire.queue_groups g
                           where g.environment_id = %(environment_id)s and g.queue = r.queue
                             and g.concurrency_key = '') as is_limited
             from runwire.runs r
            where r.environment_id = %(environment_id)s and r.id = heads.id
              and r.status || '' = 'QUEUED'  -- no partial index: this is a look-up by id
              and not r.limited
              -- The worker where its code waits comes first, for a second.
              and (r.parked_by is null or r.parked_by = %(worker_id)s
                   or r.queued_at < runwire.now_v1() - interval '1 second')
              and (r.expires_at is null or r.expires_at > runwire.now_v1())
              for no key update skip locked) as locked
     limit %(slots)s
), worker as materialized (
    select w.id, nullif(w.version, '') as version
      from runwire.workers w, clock
     where w.id = %(worker_id)s and w.environment_id = %(environment_id)s
       and w.stopped_at is null and w.expires_at > clock.now
       for key share of w
), claimed as (
    update runwire.runs r
       set status = 'EXECUTING',
           revision = r.revision + 1,
           execution = r.execution + 1,
           -- A run that waited goes on with the attempt it has.
           attempt = r.attempt + (not r.resuming)::integer,
           lineage = case when r.resuming then r.lineage else r.execution + 1 end,
           active_ms = case when r.resuming then r.active_ms else 0 end,
           resuming = false,
           parked_by = null,
           max_attempts = coalesce(r.max_attempts, wanted.max_attempts),
           worker_id = worker.id,
           version = coalesce(worker.version, r.version),
           claimed_at = clock.now,
           started_at = coalesce(r.started_at, clock.now),
           expires_at = null,
           error = null,
           updated_at = clock.now
      from clock, worker,
           unnest(%(tasks)s::text[], %(max_attempts)s::integer[]) as wanted (task, max_attempts)
     where r.environment_id = %(environment_id)s
       and r.id = any(%(ids)s::text[] || array(select id from picked where not is_limited))
       and r.status || '' = 'QUEUED' and r.task || '' = wanted.task
    returning r.*
), served as (
    -- In the order they were picked in, so that the next turn begins with whom this one left out.
    update runwire.queue_groups g
       set last_served = clock.now + served.place * interval '1 microsecond',
           turns = had.turns + served.runs
      from clock, unnest(%(queues)s::text[], %(keys)s::text[], %(had_turns)s::bigint[])
                  as had (queue, concurrency_key, turns),
           (select c.queue, c.concurrency_key, max(picked.place) as place, count(*) as runs
              from claimed c
              join unnest(%(ids)s::text[]) with ordinality as picked (id, place)
                on picked.id = c.id
             where c.limited
             group by c.queue, c.concurrency_key) as served
     where g.environment_id = %(environment_id)s and g.queue = served.queue
       and g.concurrency_key = served.concurrency_key
       and had.queue = served.queue and had.concurrency_key = served.concurrency_key
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select bucket, environment_id, id, revision, 'executing',
           concat('{"set":{"status":"EXECUTING","attempt":', attempt,
                  ',"maxAttempts":', max_attempts,
                  ',"workerId":', to_json(worker_id)::text,
                  ',"version":' || to_json(version)::text,
                  case when started_at = claimed_at
                       then ',"startedAt":"' || runwire.wire_time_v2(started_at) || '"' end,
                  case when execution > 1 then ',"error":null' end,
                  '}}'),
           updated_at, task, tags, batch_id
      from claimed
)
select look.*, c.*, m.body as metadata
  from (select (select array_agg(distinct queue) from picked where is_limited) as unmade_queues,
               exists (select from runwire.runs r
                        where r.environment_id = %(environment_id)s and r.status = 'QUEUED'
                          and r.limited) as others_wait) as look
  left join claimed c on true
  left join lateral (
       select body from runwire.run_metadata m
        where m.environment_id = c.environment_id and m.run_id = c.id
        limit 1) as m on true;

-- take_lone --
-- As `take`, of one run that a bell named: gives it to the worker if nobody ever had it, nobody else is
-- taking it and its queue has no limit. One row at least: with whether it is ready and was not to be
-- had so, so that it is worth looking for it as for any other.
with clock as materialized (
    select runwire.now_v1() as now
), picked as materialized (
    select r.id,
           r.execution = 0 and not r.limited
           and not exists (select from runwire.queue_groups g
                            where g.environment_id = %(environment_id)s and g.queue = r.queue
                              and g.concurrency_key = '') as is_plain
      from runwire.runs r
     where r.environment_id = %(environment_id)s and r.id = %(run_id)s
       and r.status || '' = 'QUEUED'  -- no partial index: this is a look-up by id
       and r.task || '' = any(%(tasks)s::text[])
       and (r.expires_at is null or r.expires_at > runwire.now_v1())
       for no key update skip locked
), worker as materialized (
    select w.id, nullif(w.version, '') as version
      from runwire.workers w, clock
     where w.id = %(worker_id)s and w.environment_id = %(environment_id)s
       and w.stopped_at is null and w.expires_at > clock.now
       for key share of w
), claimed as (
    update runwire.runs r
       set status = 'EXECUTING',
           revision = r.revision + 1,
           execution = 1,
           attempt = 1,
           lineage = 1,
           max_attempts = coalesce(r.max_attempts, (%(max_attempts)s::integer[])[
                                       array_position(%(tasks)s::text[], r.task)]),
           worker_id = worker.id,
           version = coalesce(worker.version, r.version),
           claimed_at = clock.now,
           started_at = clock.now,
           expires_at = null,
           updated_at = clock.now
      from clock, worker, picked
     where r.environment_id = %(environment_id)s and r.id = picked.id and picked.is_plain
    returning r.*
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select bucket, environment_id, id, revision, 'executing',
           concat('{"set":{"status":"EXECUTING","attempt":1,"maxAttempts":', max_attempts,
                  ',"workerId":', to_json(worker_id)::text,
                  ',"version":' || to_json(version)::text,
                  ',"startedAt":"', runwire.wire_time_v2(started_at), '"}}'),
           updated_at, task, tags, batch_id
      from claimed
)
select look.*, c.*, m.body as metadata
  from (select exists (select from picked where not is_plain) as is_odd) as look
  left join claimed c on true
  left join lateral (
       select body from runwire.run_metadata m
        where m.environment_id = c.environment_id and m.run_id = c.id
        limit 1) as m on true;

-- wait_for_claim --
-- Waits for a claim of this worker that is still committing.
select from runwire.workers where id = %(worker_id)s for update;

-- lost --
-- What a worker holds of a claim that got no answer: claimed after its last answered one.
select r.*, m.body as metadata
  from runwire.runs r
  left join lateral (
       select body from runwire.run_metadata m
        where m.environment_id = r.environment_id and m.run_id = r.id
        limit 1) as m on true
 where r.environment_id = %(environment_id)s and r.worker_id = %(worker_id)s
   and r.status in ('DEQUEUED', 'EXECUTING')
   and r.claimed_at > coalesce(%(since)s::timestamptz, '-infinity');

-- promote --
-- Queues runs whose time has come, of one environment or of all, a bounded number; none while as many
-- of the given tasks are ready, so that what becomes ready meanwhile need not wait for all that is due.
with clock as materialized (
    select runwire.now_v1() as now
), room as materialized (
    select %(limit)s::bigint - count(*) as runs
      from (select
              from unnest(%(tasks)s::text[]) as own (task)
             cross join lateral (
                   select
                     from runwire.runs q
                    where q.environment_id = %(environment_id)s and q.task = own.task
                      and q.status = 'QUEUED' and not q.limited
                    order by q.sort_at, q.id
                    limit %(limit)s) as head
             limit %(limit)s) as ready
), due as materialized (
    -- Each environment by itself: one's runs are not read past to find another's.
    select found.environment_id, found.id
      from runwire.environments e
     cross join lateral (
          select r.environment_id, r.id, r.delayed_until
            from runwire.runs r
           where r.environment_id = e.id and r.status = 'DELAYED'
             and r.delayed_until <= (select now from clock)
           order by r.delayed_until
           limit (select runs from room)
             for no key update skip locked) as found
     where %(environment_id)s::integer is null or e.id = %(environment_id)s
     order by found.delayed_until
     limit (select runs from room)
), changed as (
    update runwire.runs r
       set status = 'QUEUED',
           revision = r.revision + 1,
           queued_at = clock.now,
           sort_at = clock.now - make_interval(secs => r.priority),
           limited = exists (select from runwire.queue_groups g
                              where g.environment_id = r.environment_id and g.queue = r.queue
                                and g.concurrency_key = ''),
           updated_at = clock.now
      from clock
     where r.environment_id = any(array(select environment_id from due))
       and r.id = any(array(select id from due))
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

-- next_due --
-- How long until the next delayed run is due.
select extract(epoch from r.delayed_until - runwire.now_v1())::double precision as seconds
  from runwire.runs r
 where r.status = 'DELAYED' and r.environment_id = %(environment_id)s
 order by r.delayed_until
 limit 1;
