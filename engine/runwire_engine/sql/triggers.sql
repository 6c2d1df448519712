-- existing --
-- Which of these runs are there, and in which queues.
select id, queue
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[]);

-- tasks --
-- What workers announced of these tasks, and the one time of the transaction.
select clock.now, t.id, t.queue, t.max_duration, t.ttl
  from (select runwire.now_v1() as now) as clock
  left join runwire.tasks t
    on t.environment_id = %(environment_id)s and t.id = any(%(tasks)s::text[]);

-- hold_parents --
-- Keeps executing runs as they are until this transaction ends.
select id, execution, root_id, depth
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
   and status in ('EXECUTING', 'WAITING')
 order by id
   for share;

-- parents --
-- Executing runs as they are now, for a transaction that may stay open for long.
select id, execution, root_id, depth
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
   and status in ('EXECUTING', 'WAITING');

-- claim_requests --
-- Claims the keys of calls that nobody has answered yet; waits for whoever is answering one.
insert into runwire.request_keys (environment_id, operation, key, target_id, created_at)
select %(environment_id)s, 'trigger', wanted.key, wanted.id, %(now)s
  from unnest(%(keys)s::text[], %(ids)s::text[]) as wanted (key, id)
 order by wanted.key
    on conflict do nothing
returning key;

-- answered_requests --
-- What calls were answered before: with a run made by the call, or (is_cached) an earlier one.
select k.key, k.target_id, r.created_at < k.created_at as is_cached
  from runwire.request_keys k
 cross join lateral (
       select created_at
         from runwire.runs
        where environment_id = k.environment_id and id = k.target_id
        limit 1) as r
 where k.environment_id = %(environment_id)s and k.operation = 'trigger'
   and k.key = any(%(keys)s::text[]);

-- move_requests --
-- Points calls at the earlier runs they led to; the time tells them from calls that made theirs.
update runwire.request_keys k
   set target_id = moved.id, created_at = k.created_at + interval '1 microsecond'
  from unnest(%(keys)s::text[], %(ids)s::text[]) as moved (key, id)
 where k.environment_id = %(environment_id)s and k.operation = 'trigger'
   and k.key = any(%(keys)s::text[]) and k.key = moved.key;

-- free_requests --
-- Frees the keys of calls that were refused.
delete from runwire.request_keys
 where environment_id = %(environment_id)s and operation = 'trigger'
   and key = any(%(keys)s::text[]);

-- use_tokens --
-- Uses up one-time tokens; those not returned were used before.
insert into runwire.used_tokens (environment_id, jti, expires_at)
select %(environment_id)s, paid.jti, paid.expires_at
  from unnest(%(jtis)s::text[], %(expire)s::timestamptz[]) as paid (jti, expires_at)
 order by paid.jti
    on conflict do nothing
returning jti;

-- free_tokens --
-- Gives back one-time tokens that this very transaction used up.
delete from runwire.used_tokens
 where environment_id = %(environment_id)s and jti = any(%(jtis)s::text[]);

-- claim_keys --
-- Claims idempotency keys that are free or expired. Somebody else may be claiming one, perhaps in a
-- transaction of an application, which takes its time: waits for it, or leaves that key out.
with wanted as materialized (
    select given.*,
           case when %(waits)s then pg_advisory_xact_lock(given.lock) is not null
                else pg_try_advisory_xact_lock(given.lock) end as is_ours
      from (select task, key, id, ttl,
                   hashtextextended(concat_ws(' ', 'runwire.idempotency_keys',
                                              %(environment_id)s::text, task, key), 0) as lock
              from unnest(%(tasks)s::text[], %(keys)s::text[], %(ids)s::text[],
                          %(ttls)s::double precision[]) as wanted (task, key, id, ttl)
             order by task, key) as given
)
insert into runwire.idempotency_keys as k
       (environment_id, task, key, run_id, created_at, expires_at)
select %(environment_id)s, wanted.task, wanted.key, wanted.id, %(now)s,
       %(now)s + make_interval(secs => wanted.ttl)
  from wanted
 where wanted.is_ours
 order by wanted.task, wanted.key
    on conflict (environment_id, task, key) do update
   set run_id = excluded.run_id, created_at = excluded.created_at,
       expires_at = excluded.expires_at
 where k.expires_at <= %(now)s
returning task, key;

-- held_keys --
-- The runs that idempotency keys lead to.
select wanted.task, wanted.key, k.run_id
  from unnest(%(tasks)s::text[], %(keys)s::text[]) as wanted (task, key)
 cross join lateral (
       select run_id
         from runwire.idempotency_keys
        where environment_id = %(environment_id)s and task = wanted.task and key = wanted.key
          and expires_at > %(now)s
        limit 1) as k;

-- insert --
-- Makes runs of tasks that were announced: DELAYED where they wait for a time, else QUEUED. Of those
-- with a request key, only whose key nobody has used yet; waits for whoever is using it.
with clock as materialized (
    select coalesce(%(now)s::timestamptz, runwire.now_v1()) as now
), given as materialized (
    select g.*, tagged.tags, tasks.queue as task_queue, tasks.ttl as task_ttl,
           tasks.max_duration as task_max_duration
      from unnest(%(ids)s::text[], %(tasks)s::text[], %(queues)s::text[],
                  %(concurrency_keys)s::text[], %(payloads)s::text[], %(payload_types)s::text[],
                  %(metadata)s::text[], %(delays_until)s::timestamptz[],
                  %(delays)s::double precision[], %(ttls)s::double precision[],
                  %(max_attempts)s::integer[], %(max_durations)s::double precision[],
                  %(priorities)s::double precision[], %(idempotency_keys)s::text[],
                  %(request_keys)s::text[],
                  %(parent_ids)s::text[], %(root_ids)s::text[], %(depths)s::integer[],
                  %(batch_ids)s::text[], %(are_tests)s::boolean[], %(awaited)s::boolean[])
           with ordinality
           as g (id, task, queue, concurrency_key, payload, payload_type, metadata, delay_until,
                 delay, ttl, max_attempts, max_duration, priority, idempotency_key, request_key,
                 parent_id, root_id, depth, batch_id, is_test, awaited, place)
     cross join lateral (
           select t.queue, t.ttl, t.max_duration
             from runwire.tasks t
            where t.environment_id = %(environment_id)s and t.id = g.task
            limit 1) as tasks
      left join (
          select t.place, array_agg(t.tag order by t.position) as tags
            from unnest(%(tag_places)s::bigint[], %(tags)s::text[]) with ordinality
                 as t (place, tag, position)
           group by t.place
      ) as tagged on tagged.place = g.place
), claimed as (
    insert into runwire.request_keys (environment_id, operation, key, target_id, created_at)
    select %(environment_id)s, 'trigger', given.request_key, given.id, clock.now
      from given, clock
     where given.request_key is not null
     order by given.request_key
        on conflict do nothing
    returning target_id
), timed as (
    select given.*, clock.now, greatest(
               coalesce(delay_until, clock.now + make_interval(secs => delay)), clock.now) as due
      from given, clock
     where given.request_key is null or given.id in (select target_id from claimed)
), made as (
    insert into runwire.runs
           (environment_id, id, bucket, task, status, queue, concurrency_key, limited, sort_at,
            priority, payload, payload_type, tags, parent_id, root_id, depth, batch_id,
            idempotency_key, is_test, max_attempts, max_duration, ttl, expires_at, delayed_until,
            created_at, updated_at, queued_at, awaited)
    select %(environment_id)s, t.id, (t.now at time zone 'UTC')::date, t.task,
           case when t.due > t.now then 'DELAYED' else 'QUEUED' end,
           coalesce(t.queue, t.task_queue), t.concurrency_key, q.queue is not null,
           coalesce(t.due, t.now) - make_interval(secs => t.priority), t.priority,
           t.payload, t.payload_type, coalesce(t.tags, '{}'), t.parent_id,
           t.root_id, t.depth, t.batch_id,
           t.idempotency_key, t.is_test, t.max_attempts,
           coalesce(t.max_duration, t.task_max_duration), coalesce(t.ttl, t.task_ttl),
           coalesce(t.due, t.now) + make_interval(secs => coalesce(t.ttl, t.task_ttl)),
           case when t.due > t.now then t.due end,
           t.now, t.now, case when t.due > t.now then null else t.now end,
           t.awaited
      from timed t
      left join lateral (
           select g.queue
             from runwire.queue_groups g
            where g.environment_id = %(environment_id)s and g.queue = coalesce(t.queue, t.task_queue)
              and g.concurrency_key = ''
            limit 1) as q on true
        on conflict do nothing
    returning environment_id, id, bucket, task, status, queue, concurrency_key, limited, tags,
              batch_id, created_at, queued_at, delayed_until
), logged as (
    -- What may change later is told as it was in the beginning; the rest stands in the row.
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select m.bucket, m.environment_id, m.id, 1, 'created',
           concat('{"set":{"status":"', m.status, '","tags":', to_json(m.tags)::text,
                  ',"queuedAt":"' || runwire.wire_time_v2(m.queued_at) || '"',
                  ',"delayedUntil":"' || runwire.wire_time_v2(m.delayed_until) || '"',
                  case when octet_length(given.metadata) > 8192
                       then ',"metadata":{"$large":{"bytes":' || octet_length(given.metadata) || '}}'
                       when given.metadata is not null then ',"metadata":' || given.metadata end,
                  '}}'),
           m.created_at, m.task, m.tags, m.batch_id
      from made m
      join given on given.id = m.id
), tagged as (
    insert into runwire.run_tags (environment_id, tag, created_at, run_id)
    select m.environment_id, tag, m.created_at, m.id
      from made m cross join unnest(m.tags) as tag
        on conflict do nothing
), described as (
    insert into runwire.run_metadata (environment_id, run_id, body)
    select m.environment_id, m.id, given.metadata
      from made m
      join given on given.id = m.id
     where given.metadata is not null
), grouped as (
    -- Not for a transaction that may stay open for long: whoever claims the run makes its group.
    insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit)
    select distinct m.environment_id, m.queue, m.concurrency_key, base.concurrency_limit
      from made m
     cross join lateral (
           select g.concurrency_limit
             from runwire.queue_groups g
            where g.environment_id = m.environment_id and g.queue = m.queue
              and g.concurrency_key = ''
            limit 1) as base
     where m.limited and m.concurrency_key <> '' and %(makes_groups)s
     order by 1, 2, 3
        on conflict do nothing
)
select id, queue, status from made;

-- list_in_batches --
-- Notes which run stands at which place of a batch.
insert into runwire.batch_items (environment_id, batch_id, index, run_id)
select %(environment_id)s, item.batch_id, item.index, item.run_id
  from unnest(%(batch_ids)s::text[], %(indexes)s::integer[], %(ids)s::text[])
       as item (batch_id, index, run_id)
 order by item.batch_id, item.index
    on conflict do nothing;

-- lone --
-- Makes one run that asks for nothing beside its own row, commits it and rings for it; answers its
-- queue. None where its task is unknown, or its call was made before: then nothing was written.
call runwire.trigger_lone_v2(
    %(environment_id)s, %(id)s::text, %(task)s::text, %(concurrency_key)s::text, %(payload)s::text,
    %(payload_type)s::text, %(metadata)s::text, %(delay_until)s::timestamptz,
    %(delay)s::double precision, %(ttl)s::double precision, %(max_attempts)s::integer,
    %(max_duration)s::double precision, %(priority)s::double precision, %(tags)s::text[],
    %(is_test)s::boolean, %(request_key)s::text, %(rings)s::boolean, null);
