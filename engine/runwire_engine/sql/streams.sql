-- hasten --
-- Gives up a lock that is not had soon, for this transaction only.
set local lock_timeout = '200ms';

-- lock_runs --
-- Keeps runs as they are while their streams are written.
select id, status, execution, bucket
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
 order by id
   for share;

-- lock_runs_to_change --
-- Keeps runs for this transaction, which may give them new streams.
select id, status, execution, bucket
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
 order by id
   for no key update;

-- there --
-- Which of these runs exist.
select id from runwire.runs where environment_id = %(environment_id)s and id = any(%(ids)s::text[]);

-- lock_free_runs --
-- As lock_runs_to_change, without those that somebody holds.
select id, status, execution, bucket
  from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[])
 order by id
   for no key update skip locked;

-- make --
-- Makes the rows of streams that are written for the first time, and tells which are new.
insert into runwire.streams (environment_id, run_id, key, bucket)
select %(environment_id)s, made.run_id, made.key, made.bucket
  from unnest(%(run_ids)s::text[], %(keys)s::text[], %(buckets)s::date[])
       as made (run_id, key, bucket)
 order by made.run_id, made.key
    on conflict do nothing
returning run_id, key;

-- announce --
-- Adds new streams to their runs: a revision and an event each.
with fresh as (
    select made.run_id, array_agg(made.key order by made.position) as keys
      from unnest(%(run_ids)s::text[], %(keys)s::text[]) with ordinality
           as made (run_id, key, position)
     group by made.run_id
), changed as (
    update runwire.runs r
       set stream_keys = r.stream_keys || fresh.keys,
           revision = r.revision + 1,
           updated_at = runwire.now_v1()
      from fresh
     where r.environment_id = %(environment_id)s and r.id = fresh.run_id
       and r.id = any(%(run_ids)s::text[])
    returning r.*
)
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
select bucket, environment_id, id, revision, 'streams',
       json_build_object('set', json_build_object('realtimeStreams', to_json(stream_keys)))::text,
       updated_at, task, tags, batch_id
  from changed;

-- keep_reserved --
-- Notes new streams of Runwire's own at their runs, for their end: no news of the run.
update runwire.runs r
   set reserved_stream_keys = r.reserved_stream_keys || fresh.keys
  from (select made.run_id, array_agg(made.key order by made.position) as keys
          from unnest(%(run_ids)s::text[], %(keys)s::text[]) with ordinality
               as made (run_id, key, position)
         group by made.run_id) as fresh
 where r.environment_id = %(environment_id)s and r.id = fresh.run_id
   and r.id = any(%(run_ids)s::text[]);

-- lock --
-- Takes the lock of streams, under which their seq is given out.
select s.id, s.run_id, s.key, s.bucket, s.next_seq, s.bytes, s.execution, s.attempts,
       s.ended_execution
  from runwire.streams s
  join unnest(%(run_ids)s::text[], %(keys)s::text[]) as wanted (run_id, key)
    on s.run_id = wanted.run_id and s.key = wanted.key
 where s.environment_id = %(environment_id)s and s.run_id = any(%(run_ids)s::text[])
 order by s.run_id, s.key
   for no key update of s;

-- lock_free --
-- As lock, without those that somebody holds.
select s.id, s.run_id, s.key, s.bucket, s.next_seq, s.bytes, s.execution, s.attempts,
       s.ended_execution
  from runwire.streams s
  join unnest(%(run_ids)s::text[], %(keys)s::text[]) as wanted (run_id, key)
    on s.run_id = wanted.run_id and s.key = wanted.key
 where s.environment_id = %(environment_id)s and s.run_id = any(%(run_ids)s::text[])
 order by s.run_id, s.key
   for no key update of s skip locked;

-- parts --
-- Finds what repeated parts were answered.
select w.target, w.writer_id, w.last_result
  from runwire.writers w
  join unnest(%(targets)s::text[], %(parts)s::text[]) as wanted (target, writer_id)
    on w.target = wanted.target and w.writer_id = wanted.writer_id
 -- By key as well as by the join: a plan made while the table was small stays good.
 where w.environment_id = %(environment_id)s and w.target = any(%(targets)s::text[])
   and w.writer_id = any(%(parts)s::text[]);

-- keep_parts --
-- Records the answers of parts, under the lock of their streams.
insert into runwire.writers (environment_id, target, writer_id, last_no, last_result)
select %(environment_id)s, part.target, part.writer_id, 0, part.answer
  from unnest(%(targets)s::text[], %(parts)s::text[], %(answers)s::text[])
       as part (target, writer_id, answer);

-- write --
-- Stores the chunks of a flush, moves their streams and records the flush; returns nothing when a
-- flush of this number (or a later one) is already stored: then this one must not commit.
with moved as (
    update runwire.streams s
       set next_seq = new.next_seq, bytes = new.bytes, execution = new.execution,
           attempts = new.attempts, ended_execution = new.ended_execution
      from unnest(%(ids)s::bigint[], %(next_seqs)s::bigint[], %(sizes)s::bigint[],
                  %(executions)s::integer[], %(attempts)s::text[], %(ended_executions)s::integer[])
           as new (id, next_seq, bytes, execution, attempts, ended_execution)
     -- By key as well as by the join: a plan made while the table was small stays good.
     where s.id = new.id and s.id = any(%(ids)s::bigint[])
), stored as (
    insert into runwire.stream_chunks
           (bucket, stream_id, seq, execution, attempt, writer, body)
    select * from unnest(%(chunk_buckets)s::date[], %(chunk_streams)s::bigint[],
                         %(chunk_seqs)s::bigint[], %(chunk_executions)s::integer[],
                         %(chunk_attempts)s::integer[], %(chunk_writers)s::text[],
                         %(chunk_bodies)s::text[])
)
insert into runwire.writers as w (environment_id, target, writer_id, last_no, last_result)
values (%(environment_id)s, 'chunks', %(writer_id)s, %(number)s, %(result)s)
    on conflict (environment_id, target, writer_id) do update
   set last_no = excluded.last_no, last_result = excluded.last_result,
       updated_at = runwire.now_v1()
 where w.last_no < excluded.last_no
returning w.last_no;

-- append_lone --
-- Stores a flush of one stream that was placed by what its writer remembers, commits it and rings for
-- it; answers whether everything was as remembered: else nothing was written.
call runwire.append_lone_v1(
    %(environment_id)s::integer, %(run_id)s::text, %(run_status)s::text, %(run_execution)s::integer,
    %(stream_id)s::bigint, %(stream_seq)s::bigint, %(stream_execution)s::integer,
    %(stream_count)s::integer, %(stream_bytes)s::bigint, %(stream_end)s::integer,
    %(bucket)s::date, %(execution)s::integer, %(attempt)s::integer, %(writer)s::text,
    %(bodies)s::text, %(writer_id)s::text, %(after)s::bigint, %(number)s::bigint, %(bell)s::text,
    %(in_session)s::boolean, null);

-- append_known --
-- Does the same for streams of several, or of several runs.
call runwire.append_known_v3(
    %(environment_id)s::integer,
    %(run_ids)s::text[], %(run_statuses)s::text[], %(run_executions)s::integer[],
    %(stream_ids)s::bigint[], %(stream_seqs)s::bigint[], %(stream_executions)s::integer[],
    %(stream_counts)s::integer[], %(stream_bytes)s::bigint[], %(stream_ends)s::integer[],
    %(piece_streams)s::bigint[], %(piece_buckets)s::date[], %(piece_seqs)s::bigint[],
    %(piece_counts)s::integer[], %(piece_executions)s::integer[], %(piece_attempts)s::integer[],
    string_to_array(%(piece_writers)s::text, e'\x1d', ''), %(bodies)s::text,
    %(writer_id)s::text, %(after)s::bigint, %(number)s::bigint, %(bell)s::text,
    %(in_session)s::boolean, null);

-- heads --
-- Where streams stand.
select s.id, s.run_id, s.key, s.bucket, s.next_seq, s.bytes, s.execution, s.attempts,
       s.ended_execution, s.eof_reason, s.created_at
  from runwire.streams s
  join unnest(%(run_ids)s::text[], %(keys)s::text[]) as wanted (run_id, key)
    on s.run_id = wanted.run_id and s.key = wanted.key
 where s.environment_id = %(environment_id)s and s.run_id = any(%(run_ids)s::text[]);

-- of_run --
-- Every stream of a run, oldest first.
select id, run_id, key, bucket, next_seq, bytes, execution, attempts, ended_execution, eof_reason,
       created_at
  from runwire.streams
 where environment_id = %(environment_id)s and run_id = %(run_id)s
 order by id;

-- chunks --
-- A page of a stream: at least one chunk, then as many as fit. The bucket prunes to one partition.
select seq, execution, attempt, writer, body
  from (select seq, execution, attempt, writer, body,
               sum(octet_length(body)) over (order by seq) - octet_length(body) as before
          from (select seq, execution, attempt, writer, body
                  from runwire.stream_chunks
                 where bucket = %(bucket)s and stream_id = %(stream_id)s and seq >= %(from_seq)s
                   -- Dense: no plan reads more than the page, however long the stream is.
                   and seq < %(from_seq)s::bigint + %(limit_chunks)s::bigint
                 order by seq
                 limit %(limit_chunks)s) as page) as measured
 where before < %(limit_bytes)s
 order by seq;
