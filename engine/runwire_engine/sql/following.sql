-- rows --
-- Runs whole, with the batches they stand in; a body over the limit is left out and its size told.
select r.environment_id, r.id, r.bucket, r.task, r.status, r.revision, r.execution, r.attempt,
       r.max_attempts, r.queue, r.concurrency_key, r.limited, r.sort_at, r.priority, r.worker_id,
       r.version, r.payload_type, r.output_type, r.error, r.tags, r.stream_keys, r.parent_id,
       r.root_id, r.depth, r.batch_id, r.idempotency_key, r.is_test, r.max_duration, r.ttl,
       r.expires_at, r.delayed_until, r.cancel_requested_at, r.created_at, r.updated_at,
       r.queued_at, r.started_at, r.claimed_at, r.duration_ms, r.finished_at, r.expired_at,
       case when octet_length(r.payload) <= %(limit)s then r.payload end as payload,
       case when octet_length(r.output) <= %(limit)s then r.output end as output,
       case when octet_length(m.body) <= %(limit)s then m.body end as metadata,
       octet_length(r.payload) as payload_bytes, octet_length(r.output) as output_bytes,
       octet_length(m.body) as metadata_bytes,
       array(select i.batch_id from runwire.batch_items i
              where i.environment_id = r.environment_id and i.run_id = r.id) as batches
  from runwire.runs r
  left join runwire.run_metadata m
    on m.environment_id = r.environment_id and m.run_id = r.id and m.run_id = any(%(ids)s::text[])
 where r.environment_id = %(environment_id)s and r.id = any(%(ids)s::text[]);

-- tagged --
-- The newest runs that carry all these tags, newest first; `first` is the one the index walks.
select r.id, r.is_final, r.revision
  from runwire.run_tags t
 cross join lateral (
       select r.id, r.finished_at is not null as is_final, r.revision
         from runwire.runs r
        where r.environment_id = %(environment_id)s and r.id = t.run_id
          and r.tags @> %(tags)s::text[]
        limit 1) as r
 where t.environment_id = %(environment_id)s and t.tag = %(first)s
   and t.created_at >= %(since)s::timestamptz
 order by t.created_at desc, t.run_id desc
 limit %(limit)s;

-- open_tagged --
-- Those of them that are not over. Where few runs are, of whatever tag, those are looked through. Else
-- the newest are found by their tag, and what is older and not over is little: a hundred thousand runs
-- that are over are not read past.
with few as materialized (
    select r.id, r.revision, r.created_at, r.tags
      from runwire.runs r
     where r.environment_id = %(environment_id)s and r.finished_at is null
       and r.created_at >= %(since)s::timestamptz
     order by r.created_at desc, r.id desc
     limit %(limit)s
), newest as materialized (
    select t.run_id, t.created_at
      from runwire.run_tags t
     where t.environment_id = %(environment_id)s and t.tag = %(first)s
       and t.created_at >= %(since)s::timestamptz
     order by t.created_at desc, t.run_id desc
     limit case when (select count(*) from few) >= %(limit)s then %(limit)s else 0 end
), found as (
    select few.id, few.revision, few.created_at
      from few
     where few.tags @> %(tags)s::text[]
     union
    select r.id, r.revision, r.created_at
      from newest
     cross join lateral (
           select r.id, r.revision, r.created_at
             from runwire.runs r
            where r.environment_id = %(environment_id)s and r.id = newest.run_id
              and r.finished_at is null and r.tags @> %(tags)s::text[]
            limit 1) as r
     union
    select older.id, older.revision, older.created_at
      from (select r.id, r.revision, r.created_at
              from runwire.runs r
             where r.environment_id = %(environment_id)s and r.finished_at is null
               and r.created_at <= (select min(created_at) from newest)
               and r.created_at >= %(since)s::timestamptz and r.tags @> %(tags)s::text[]
             order by r.created_at desc, r.id desc
             limit case when (select count(*) from newest) >= %(limit)s then %(limit)s else 0 end)
           as older
)
select id, false as is_final, revision
  from found
 order by created_at desc, id desc
 limit %(limit)s;

-- recent --
-- The newest runs of an environment that a filter lets through, newest first.
select r.id, r.finished_at is not null as is_final, r.revision
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and r.created_at >= %(since)s::timestamptz
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- open_recent --
-- The newest of them that are not over.
select r.id, false as is_final, r.revision
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.finished_at is null
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and r.created_at >= %(since)s::timestamptz
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- failed_recent --
-- The newest of them that are over and did not complete.
select r.id, true as is_final, r.revision
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and r.status in ('CANCELED', 'FAILED', 'CRASHED', 'SYSTEM_FAILURE', 'EXPIRED', 'TIMED_OUT')
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and r.status = any(%(statuses)s::text[])
   and r.created_at >= %(since)s::timestamptz
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- batch --
-- A batch: whether all its items are there.
select sealed
  from runwire.batches
 where environment_id = %(environment_id)s and id = %(batch_id)s;

-- batch_runs --
-- The runs of a batch, in the order of its items.
select r.id, r.is_final, r.revision
  from runwire.batch_items i
 cross join lateral (
       select r.id, r.finished_at is not null as is_final, r.revision
         from runwire.runs r
        where r.environment_id = %(environment_id)s and r.id = i.run_id
        limit 1) as r
 where i.environment_id = %(environment_id)s and i.batch_id = %(batch_id)s
 order by i.index
 limit %(limit)s;

-- touched --
-- The runs whose events became visible since a snapshot, of those that a feed may hold, the first
-- revision of each that did, the first that changed its tags, and how it was created when that is
-- among them. Tags of an event are those before and after it.
select e.run_id, min(e.revision) as first,
       min(e.revision) filter (where e.type = 'tags') as tagged,
       min(e.delta) filter (where e.revision = 1) as created
  from (select environment_id, run_id, revision, type, tags, task, delta
          from runwire.run_events
         where txid >= pg_snapshot_xmax(%(snapshot)s::pg_snapshot)
         union all
        select environment_id, run_id, revision, type, tags, task, delta
          from runwire.run_events
         where txid = any (array(select pg_snapshot_xip(%(snapshot)s::pg_snapshot)))
       ) as e
 where e.environment_id = %(environment_id)s
   and e.tags @> %(tags)s::text[]
   and (%(tasks)s::text[] is null or e.task = any(%(tasks)s::text[]))
   and (%(batch_id)s::text is null or exists (
        select from runwire.batch_items i
         where i.environment_id = e.environment_id and i.run_id = e.run_id
           and i.batch_id = %(batch_id)s::text))
 group by e.run_id
 order by e.run_id
 limit %(limit)s;

-- before --
-- The tags and the status of runs as they were before a revision of each, and the batch in which
-- each was created.
select w.run_id, r.batch_id,
       (select e.delta::json #> '{set,tags}'
          from runwire.run_events e
         where e.bucket = r.bucket and e.environment_id = r.environment_id and e.run_id = r.id
           and e.revision < w.revision and e.type in ('created', 'tags')
         order by e.revision desc
         limit 1) as tags,
       (select e.delta::json #>> '{set,status}'
          from runwire.run_events e
         where e.bucket = r.bucket and e.environment_id = r.environment_id and e.run_id = r.id
           and e.revision < w.revision and e.delta::json #>> '{set,status}' is not null
         order by e.revision desc
         limit 1) as status
  from unnest(%(ids)s::text[], %(revisions)s::bigint[]) as w (run_id, revision)
  join runwire.runs r on r.environment_id = %(environment_id)s and r.id = w.run_id;

-- creations --
-- How runs were created; where a batch is given, only those created in it.
select e.run_id, e.delta
  from runwire.run_events e
 where e.environment_id = %(environment_id)s and e.run_id = any(%(ids)s::text[])
   and e.revision = 1
   and (%(batch_id)s::text is null or e.batch_id = %(batch_id)s);

-- place --
-- Whether a snapshot is from this database's future.
select pg_snapshot_xmax(%(snapshot)s::pg_snapshot) > pg_snapshot_xmax(pg_current_snapshot())
       as is_ahead;

-- since --
-- When a feed of the last so many seconds begins.
select runwire.now_v1() - make_interval(secs => %(seconds)s::double precision) as since;

-- events --
-- The changes of one run after a revision, oldest first.
select e.revision, e.type, e.delta, e.created_at, e.tags
  from runwire.run_events e
 where e.environment_id = %(environment_id)s and e.run_id = %(run_id)s and e.revision > %(after)s
 order by e.revision
 limit %(limit)s;

-- heads --
-- Where streams stand; a key of null stands for all streams of its run.
select s.id, s.run_id, s.key, s.bucket, s.next_seq, s.attempts, s.ended_execution, s.eof_reason
  from unnest(%(run_ids)s::text[], %(keys)s::text[]) as wanted (run_id, key)
  join runwire.streams s
    on s.environment_id = %(environment_id)s and s.run_id = wanted.run_id
   and (wanted.key is null or s.key = wanted.key)
   -- By key as well as by the join: a plan made while the table was small stays good.
   and s.run_id = any(%(run_ids)s::text[]);

-- chunks --
-- A page of each stream from a position: at least one chunk, then as many as fit. The bucket prunes
-- to one partition. A row for each: to gather them here costs Postgres twice as much.
select wanted.stream_id, page.seq, page.execution, page.attempt, page.writer,
       convert_to(page.body, 'UTF8') as body
  from unnest(%(stream_ids)s::bigint[], %(buckets)s::date[], %(from_seqs)s::bigint[])
       as wanted (stream_id, bucket, from_seq)
 cross join lateral (
      select first.*, sum(octet_length(body)) over so_far - octet_length(body) as before
        from (select c.seq, c.execution, c.attempt, c.writer, c.body
                from runwire.stream_chunks c
               where c.bucket = wanted.bucket and c.stream_id = wanted.stream_id
                 and c.seq >= wanted.from_seq
                 -- Dense: no plan reads more than the page, however long the stream is.
                 and c.seq < wanted.from_seq + %(limit_chunks)s::bigint
               order by c.seq
               limit %(limit_chunks)s) as first
      window so_far as (order by seq rows unbounded preceding)) as page
 where page.before < %(limit_bytes)s;

-- text --
-- A stretch of a stream as one piece of JSON text, without quotes: from a position on, as far as
-- its chunks are strings and fit.
select min(seq) as first, count(*) as count,
       string_agg(substr(body, 2, length(body) - 2), '' order by seq) as text
  from (select c.seq, c.body, sum(octet_length(c.body) - 2) over so_far as bytes,
               bool_and(left(c.body, 1) = '"') over so_far as is_text
          from runwire.stream_chunks c
         where c.bucket = %(bucket)s and c.stream_id = %(stream_id)s
           and c.seq >= %(from_seq)s and c.seq < %(before_seq)s
        window so_far as (order by c.seq rows unbounded preceding)) as measured
 where bytes <= %(limit_bytes)s and is_text;

-- revisions --
-- How far runs are.
select r.id, r.revision
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.id = any(%(ids)s::text[]);
