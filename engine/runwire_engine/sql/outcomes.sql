-- complete --
-- Ends attempts that returned, whose execution still holds its run, and whose end entails nothing more
-- (see Endings), so that it may be the whole transaction; the others are left to `record`. A row that
-- changed meanwhile is looked at again, as it is then. Ids in order, as everybody locks.
with clock as (
    select runwire.now_v1() as now
), changed as (
    update runwire.runs r
       set status = 'COMPLETED',
           revision = r.revision + 1,
           worker_id = null,
           output = given.output,
           output_type = given.output_type,
           error = null,
           duration_ms = r.duration_ms + coalesce(
               (extract(epoch from clock.now - r.claimed_at) * 1000)::bigint, 0),
           finished_at = clock.now,
           updated_at = clock.now
      from clock,
           -- Not unnest, of which Postgres expects so few that it compares each with each.
           (select (%(ids)s::text[])[place] as id,
                   (%(executions)s::integer[])[place] as execution,
                   (%(outputs)s::text[])[place] as output,
                   (%(output_types)s::text[])[place] as output_type
              from generate_subscripts(%(ids)s::text[], 1) as place) as given
     where r.environment_id = %(environment_id)s and r.id = any(%(ids)s::text[])
       and r.id = given.id and r.execution = given.execution
       -- No partial index: this is a look-up by id.
       and r.status || '' in ('DEQUEUED', 'EXECUTING')
       and r.cancel_requested_at is null and r.waited = 0
       and r.stream_keys = '{}' and r.reserved_stream_keys = '{}'
    returning r.bucket, r.environment_id, r.id, r.status, r.revision, r.duration_ms, r.finished_at,
              r.output, r.output_type, r.updated_at, r.task, r.tags, r.batch_id, r.queue, r.limited,
              r.awaited
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select c.bucket, c.environment_id, c.id, c.revision, 'final',
           concat(
               '{"set":{"status":"COMPLETED","workerId":null,"durationMs":', c.duration_ms,
               ',"finishedAt":"', runwire.wire_time_v2(c.finished_at), '"',
               case when octet_length(c.output) > 8192
                    then ',"output":{"$large":{"bytes":' || octet_length(c.output) || '}}'
                    when c.output is not null then ',"output":' || c.output end,
               ',"outputType":' || to_json(c.output_type)::text,
               '}}'),
           c.updated_at, c.task, c.tags, c.batch_id
      from changed c
)
select environment_id, id, status, queue, limited, awaited from changed;

-- record --
-- Ends attempts whose execution still holds its run: a transition, a revision and an event each.
-- A cancellation that was requested before beats whatever the attempt ended with. `alone`: leaves out
-- whose end entails more than that (see Endings), so that it may be the whole transaction.
with clock as (
    select runwire.now_v1() as now
), given as (
    select *
      from unnest(%(ids)s::text[], %(executions)s::integer[], %(statuses)s::text[],
                  %(outputs)s::text[], %(output_types)s::text[], %(errors)s::text[],
                  %(delays)s::double precision[], %(released)s::boolean[], %(lost)s::boolean[])
           as given (id, execution, status, output, output_type, error, delay, released, lost)
), held as (
    select g.id, g.output, g.output_type, g.error, g.released,
           -- Whoever lost two workers may have killed them, or stood beside the one who did: they
           -- come back apart, at random, so that the one takes the others along no third time.
           case when g.lost then random() * least(60, 2 ^ r.attempt) else g.delay end as delay,
           case when r.cancel_requested_at is not null then 'CANCELED'
                when not g.lost or r.attempt >= coalesce(r.max_attempts, 1) then g.status
                when r.attempt = 1 then 'QUEUED'
                else 'DELAYED' end as becomes,
           g.lost and r.attempt < coalesce(r.max_attempts, 1) as spared
      from (select * from given order by id) as g
     cross join lateral (
           select r.cancel_requested_at, r.attempt, r.max_attempts
             from runwire.runs r
            where r.environment_id = %(environment_id)s and r.id = g.id
              and r.execution = g.execution
              -- No partial index: this is a look-up by id.
              and r.status || '' in ('DEQUEUED', 'EXECUTING')
              and not (%(alone)s and (
                  r.waited > 0 or r.stream_keys <> '{}' or r.reserved_stream_keys <> '{}'
                  or (r.idempotency_key is not null and g.status <> 'COMPLETED')))
              for update) as r
), changed as (
    update runwire.runs r
       set status = h.becomes,
           revision = r.revision + 1,
           attempt = r.attempt - (h.becomes = 'QUEUED' and h.released)::integer,
           worker_id = null,
           -- After an exception of its own the code starts over, with a journal of its own.
           generation = r.generation + (h.becomes in ('QUEUED', 'DELAYED') and not h.released
                                        and not h.spared)::integer,
           output = case when h.becomes = 'COMPLETED' then h.output end,
           output_type = case when h.becomes = 'COMPLETED' then h.output_type end,
           -- While a retry waits, the row says what it failed of.
           error = case when h.becomes not in ('COMPLETED', 'CANCELED') and not h.spared
                        then h.error end,
           duration_ms = r.duration_ms + coalesce(
               (extract(epoch from clock.now - r.claimed_at) * 1000)::bigint, 0),
           delayed_until = case when h.becomes = 'DELAYED'
                                then clock.now + make_interval(secs => h.delay)
                                else r.delayed_until end,
           queued_at = case when h.becomes = 'QUEUED' then clock.now else r.queued_at end,
           limited = case when h.becomes = 'QUEUED' then exists (
                              select from runwire.queue_groups q
                               where q.environment_id = r.environment_id and q.queue = r.queue
                                 and q.concurrency_key = '')
                          else r.limited end,
           finished_at = case when h.becomes not in ('QUEUED', 'DELAYED') then clock.now end,
           updated_at = clock.now
      from held h, clock
     where r.environment_id = %(environment_id)s and r.id = any(%(ids)s::text[]) and r.id = h.id
    returning r.*, h.released
), logged as (
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
    select c.bucket, c.environment_id, c.id, c.revision,
           case when c.finished_at is not null then 'final'
                when c.released then 'released'
                when c.error is not null or c.status = 'DELAYED' then 'retrying'
                else 'queued' end,
           concat(
               '{"set":{"status":"', c.status, '","workerId":null,"durationMs":', c.duration_ms,
               case when c.finished_at is not null
                    then ',"finishedAt":"' || runwire.wire_time_v2(c.finished_at) || '"' end,
               case when c.status = 'DELAYED'
                    then ',"delayedUntil":"' || runwire.wire_time_v2(c.delayed_until) || '"' end,
               case when c.status = 'QUEUED'
                    then ',"queuedAt":"' || runwire.wire_time_v2(c.queued_at) || '"' end,
               case when c.released then ',"attempt":' || c.attempt end,
               case when octet_length(c.output) > 8192
                    then ',"output":{"$large":{"bytes":' || octet_length(c.output) || '}}'
                    when c.output is not null then ',"output":' || c.output end,
               ',"outputType":' || to_json(c.output_type)::text,
               case when octet_length(c.error) > 8192
                    then ',"error":{"$large":{"bytes":' || octet_length(c.error) || '}}'
                    when c.error is not null then ',"error":' || c.error end,
               '}}'),
           c.updated_at, c.task, c.tags, c.batch_id
      from changed c
)
select environment_id, id, status, queue, limited,
       stream_keys || reserved_stream_keys as stream_keys, idempotency_key, awaited, waited
  from changed;

-- statuses --
-- Where runs stand whose outcome was not taken.
select id, status, execution, cancel_requested_at
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[]);
