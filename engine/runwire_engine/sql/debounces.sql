-- hold --
-- Keeps other triggers of these debounce keys away until this transaction ends; returns those that
-- are ours. Without waiting, one that an open transaction holds is not.
select held.task, held.key
  from (select wanted.task, wanted.key,
               hashtextextended(concat_ws(' ', 'runwire.debounce_keys',
                                          %(environment_id)s::text, task, key), 0) as lock
          from unnest(%(tasks)s::text[], %(keys)s::text[]) as wanted (task, key)
         order by wanted.task, wanted.key) as held
 where case when %(waits)s then pg_advisory_xact_lock(held.lock) is not null
            else pg_try_advisory_xact_lock(held.lock) end;

-- claim --
-- Claims debounce keys that are free, of those that are held; returns the run each leads to.
insert into runwire.debounce_keys as d (environment_id, task, key, run_id, expires_at)
select %(environment_id)s, wanted.task, wanted.key, wanted.id, %(now)s
  from unnest(%(tasks)s::text[], %(keys)s::text[], %(ids)s::text[]) as wanted (task, key, id)
 order by wanted.task, wanted.key
    on conflict (environment_id, task, key) do update set expires_at = d.expires_at
returning task, key, run_id;

-- waiting --
-- Which of these runs still wait for their first attempt's time, kept as they are; and for how long
-- there have been there.
select id, extract(epoch from %(now)s - created_at)::double precision as age
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
   and status || '' = 'DELAYED' and execution = 0  -- no partial index: a look-up by id
 order by id
   for no key update;

-- point --
-- Points debounce keys at the runs they lead to, each due in so many seconds.
update runwire.debounce_keys d
   set run_id = pointed.id,
       expires_at = greatest(case when d.run_id = pointed.id then d.expires_at end,
                             %(now)s + make_interval(secs => pointed.delay))
  from unnest(%(tasks)s::text[], %(keys)s::text[], %(ids)s::text[],
              %(delays)s::double precision[]) as pointed (task, key, id, delay)
 where d.environment_id = %(environment_id)s and d.key = any(%(keys)s::text[])
   and d.task = pointed.task and d.key = pointed.key;

-- push --
-- Has a run wait longer, for a trigger that may also give it another payload and other options.
with changed as (
    update runwire.runs r
       set delayed_until = due.at,
           sort_at = due.at - make_interval(secs => r.priority),
           expires_at = due.at + make_interval(secs => r.ttl),
           payload = case when %(takes)s then %(payload)s::text else r.payload end,
           payload_type = case when %(takes)s then %(payload_type)s::text else r.payload_type end,
           tags = coalesce(%(tags)s::text[], r.tags),
           max_attempts = coalesce(%(max_attempts)s::integer, r.max_attempts),
           max_duration = coalesce(%(max_duration)s::double precision, r.max_duration),
           idempotency_key = coalesce(r.idempotency_key, %(idempotency_key)s::text),
           revision = r.revision + 1,
           updated_at = %(now)s
      from (select w.id, w.tags as old_tags,
                   greatest(w.delayed_until,
                            %(now)s::timestamptz + make_interval(secs => %(delay)s)) as at
              from runwire.runs w
             where w.environment_id = %(environment_id)s and w.id = %(run_id)s) as due
     where r.environment_id = %(environment_id)s and r.id = %(run_id)s and r.id = due.id
    returning r.*, due.old_tags
), described as (
    insert into runwire.run_metadata (environment_id, run_id, body)
    select c.environment_id, c.id, %(metadata)s::text
      from changed c
     where %(metadata)s::text is not null
        on conflict (environment_id, run_id) do update set body = excluded.body
), untagged as (
    delete from runwire.run_tags t
     using changed c, unnest(c.old_tags) as old (tag)
     where old.tag <> all(c.tags)
       and t.environment_id = c.environment_id and t.tag = old.tag
       and t.created_at = c.created_at and t.run_id = c.id
), tagged as (
    insert into runwire.run_tags (environment_id, tag, created_at, run_id)
    select c.environment_id, new.tag, c.created_at, c.id
      from changed c cross join unnest(c.tags) as new (tag)
     where new.tag <> all(c.old_tags)
        on conflict do nothing
)
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
select bucket, environment_id, id, revision, 'delayed',
       concat('{"set":{"delayedUntil":"', runwire.wire_time_v2(delayed_until), '"',
              case when %(takes)s
                   then ',"payloadType":' || to_json(payload_type)::text
                        || ',"payload":' || %(payload_shown)s::text end,
              case when tags <> old_tags then ',"tags":' || to_json(tags)::text end,
              case when max_attempts = %(max_attempts)s::integer
                   then ',"maxAttempts":' || max_attempts end,
              case when max_duration = %(max_duration)s::double precision
                   then ',"maxDuration":' || max_duration end,
              case when octet_length(%(metadata)s::text) > 8192
                   then ',"metadata":{"$large":{"bytes":' || octet_length(%(metadata)s::text)
                        || '}}'
                   when %(metadata)s::text is not null
                   then ',"metadata":' || %(metadata)s::text end,
              '}}'),
       updated_at, task,
       array(select distinct tag from unnest(tags || old_tags) as told (tag)), batch_id
  from changed;

-- move_keys --
-- Points idempotency keys at the runs that their triggers led to.
update runwire.idempotency_keys k
   set run_id = moved.id
  from unnest(%(tasks)s::text[], %(keys)s::text[], %(ids)s::text[]) as moved (task, key, id)
 where k.environment_id = %(environment_id)s and k.key = any(%(keys)s::text[])
   and k.task = moved.task and k.key = moved.key;
