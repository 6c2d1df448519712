CREATE SCHEMA runwire;
CREATE PROCEDURE runwire.append_known_v1(IN in_environment integer, IN run_ids text[], IN run_statuses text[], IN run_executions integer[], IN stream_ids bigint[], IN stream_seqs bigint[], IN stream_executions integer[], IN stream_counts integer[], IN stream_bytes bigint[], IN stream_ends integer[], IN piece_streams bigint[], IN piece_buckets date[], IN piece_seqs bigint[], IN piece_executions integer[], IN piece_attempts integer[], IN piece_writers text[], IN bodies text, IN in_writer text, IN in_number bigint, IN in_result text, IN bell text, INOUT stored boolean)
    LANGUAGE plpgsql
    AS $$
declare
    held integer;
    at timestamptz := runwire.now_v1();
begin
    stored := false;
    -- In a hurry, as everybody else's chunks wait behind these. Planned once in a session and always
    -- by key: a table is small only at first.
    perform set_config('lock_timeout', '200ms', true),
            set_config('plan_cache_mode', 'force_generic_plan', true),
            set_config('enable_seqscan', 'off', true);
    select count(*) into held
      from (select r.id
              from runwire.runs r
              join unnest(run_ids, run_statuses, run_executions) as known (id, status, execution)
                on r.id = known.id and r.status = known.status and r.execution = known.execution
             where r.environment_id = in_environment and r.id = any(run_ids)
             order by r.id
               for share of r) as locked;
    if held <> cardinality(run_ids) then
        return;
    end if;
    select count(*) into held
      from (select s.id
              from runwire.streams s
              join unnest(stream_ids, stream_seqs, stream_executions)
                   as known (id, next_seq, execution)
                on s.id = known.id and s.next_seq = known.next_seq
               and s.execution = known.execution
             where s.id = any(stream_ids) and s.ended_execution is null
             order by s.run_id, s.key
               for no key update of s) as locked;
    if held <> cardinality(stream_ids) then
        return;
    end if;
    insert into runwire.writers as w (environment_id, target, writer_id, last_no, last_result)
    values (in_environment, 'chunks', in_writer, in_number, in_result)
        on conflict (environment_id, target, writer_id) do update
       set last_no = excluded.last_no, last_result = excluded.last_result, updated_at = at
     where w.last_no < excluded.last_no;
    if not found then
        return;
    end if;
    update runwire.streams s
       set next_seq = s.next_seq + new.count, bytes = s.bytes + new.bytes,
           ended_execution = new.ended
      from unnest(stream_ids, stream_counts, stream_bytes, stream_ends)
           as new (id, count, bytes, ended)
     where s.id = new.id and s.id = any(stream_ids);
    insert into runwire.stream_chunks
           (bucket, stream_id, seq, execution, attempt, writer, body, created_at)
    select piece.bucket, piece.stream_id, piece.seq + chunk.place - 1, piece.execution,
           piece.attempt, piece.writer, chunk.body, at
      from unnest(piece_buckets, piece_streams, piece_seqs, piece_executions, piece_attempts,
                  piece_writers, string_to_array(bodies, e'\x1d'))
           as piece (bucket, stream_id, seq, execution, attempt, writer, bodies)
     cross join lateral string_to_table(piece.bodies, e'\x1e')
           with ordinality as chunk (body, place);
    stored := true;
    commit;
    if bell is not null then
        perform pg_notify('runwire_feed', bell);
    end if;
end $$;
CREATE PROCEDURE runwire.append_known_v2(IN in_environment integer, IN run_ids text[], IN run_statuses text[], IN run_executions integer[], IN stream_ids bigint[], IN stream_seqs bigint[], IN stream_executions integer[], IN stream_counts integer[], IN stream_bytes bigint[], IN stream_ends integer[], IN piece_streams bigint[], IN piece_buckets date[], IN piece_seqs bigint[], IN piece_counts integer[], IN piece_executions integer[], IN piece_attempts integer[], IN piece_writers text[], IN bodies text, IN in_writer text, IN in_number bigint, IN in_result text, IN bell text, INOUT stored boolean)
    LANGUAGE plpgsql
    AS $$
declare
    held integer;
    at timestamptz := runwire.now_v1();
    is_lone boolean := cardinality(run_ids) = 1 and cardinality(stream_ids) = 1
                       and cardinality(piece_streams) = 1;
begin
    stored := false;
    -- In a hurry, as everybody else's chunks wait behind these. Planned once in a session and always
    -- by key: a table is small only at first.
    perform set_config('lock_timeout', '200ms', true),
            set_config('plan_cache_mode', 'force_generic_plan', true),
            set_config('enable_seqscan', 'off', true);
    if is_lone then
        perform from runwire.runs r
          where r.environment_id = in_environment and r.id = run_ids[1]
            and r.status = run_statuses[1] and r.execution = run_executions[1]
            for share;
        if not found then
            return;
        end if;
        update runwire.streams s
           set next_seq = s.next_seq + stream_counts[1], bytes = s.bytes + stream_bytes[1],
               ended_execution = stream_ends[1]
         where s.id = stream_ids[1] and s.next_seq = stream_seqs[1]
           and s.execution = stream_executions[1] and s.ended_execution is null;
        if not found then
            return;
        end if;
    else
        select count(*) into held
          from (select r.id
                  from runwire.runs r
                  join unnest(run_ids, run_statuses, run_executions) as known (id, status, execution)
                    on r.id = known.id and r.status = known.status
                   and r.execution = known.execution
                 where r.environment_id = in_environment and r.id = any(run_ids)
                 order by r.id
                   for share of r) as locked;
        if held <> cardinality(run_ids) then
            return;
        end if;
        select count(*) into held
          from (select s.id
                  from runwire.streams s
                  join unnest(stream_ids, stream_seqs, stream_executions)
                       as known (id, next_seq, execution)
                    on s.id = known.id and s.next_seq = known.next_seq
                   and s.execution = known.execution
                 where s.id = any(stream_ids) and s.ended_execution is null
                 order by s.run_id, s.key
                   for no key update of s) as locked;
        if held <> cardinality(stream_ids) then
            return;
        end if;
        update runwire.streams s
           set next_seq = s.next_seq + new.count, bytes = s.bytes + new.bytes,
               ended_execution = new.ended
          from unnest(stream_ids, stream_counts, stream_bytes, stream_ends)
               as new (id, count, bytes, ended)
         where s.id = new.id and s.id = any(stream_ids);
    end if;
    insert into runwire.writers as w (environment_id, target, writer_id, last_no, last_result)
    values (in_environment, 'chunks', in_writer, in_number, in_result)
        on conflict (environment_id, target, writer_id) do update
       set last_no = excluded.last_no, last_result = excluded.last_result, updated_at = at
     where w.last_no < excluded.last_no;
    if not found then
        rollback;
        return;
    end if;
    -- Set-returning functions side by side, which need no table of their own between them.
    if is_lone then
        insert into runwire.stream_chunks
               (bucket, stream_id, seq, execution, attempt, writer, body, created_at)
        select piece_buckets[1], piece_streams[1],
               generate_series(piece_seqs[1], piece_seqs[1] + piece_counts[1] - 1),
               piece_executions[1], piece_attempts[1], piece_writers[1],
               unnest(string_to_array(bodies, e'\x1e')), at;
    else
        insert into runwire.stream_chunks
               (bucket, stream_id, seq, execution, attempt, writer, body, created_at)
        select piece.bucket, piece.stream_id,
               generate_series(piece.seq, piece.seq + piece.count - 1),
               piece.execution, piece.attempt, piece.writer,
               unnest(string_to_array(piece.bodies, e'\x1e')), at
          from unnest(piece_buckets, piece_streams, piece_seqs, piece_counts, piece_executions,
                      piece_attempts, piece_writers, string_to_array(bodies, e'\x1d'))
               as piece (bucket, stream_id, seq, count, execution, attempt, writer, bodies);
    end if;
    stored := true;
    commit;
    if bell is not null then
        perform pg_notify('runwire_feed', bell);
    end if;
end $$;
CREATE PROCEDURE runwire.append_known_v3(IN in_environment integer, IN run_ids text[], IN run_statuses text[], IN run_executions integer[], IN stream_ids bigint[], IN stream_seqs bigint[], IN stream_executions integer[], IN stream_counts integer[], IN stream_bytes bigint[], IN stream_ends integer[], IN piece_streams bigint[], IN piece_buckets date[], IN piece_seqs bigint[], IN piece_counts integer[], IN piece_executions integer[], IN piece_attempts integer[], IN piece_writers text[], IN bodies text, IN in_writer text, IN in_after bigint, IN in_number bigint, IN bell text, IN in_session boolean, INOUT stored boolean)
    LANGUAGE plpgsql
    AS $$
declare
    held integer;
    at timestamptz := runwire.now_v1();
begin
    stored := false;
    if not in_session then
        perform set_config('lock_timeout', '200ms', true),
                set_config('plan_cache_mode', 'force_generic_plan', true),
                set_config('enable_seqscan', 'off', true);
    end if;
    select count(*) into held
      from (select r.id
              from runwire.runs r
              join unnest(run_ids, run_statuses, run_executions) as known (id, status, execution)
                on r.id = known.id and r.status = known.status and r.execution = known.execution
             where r.environment_id = in_environment and r.id = any(run_ids)
             order by r.id
               for share of r) as locked;
    if held <> cardinality(run_ids) then
        return;
    end if;
    select count(*) into held
      from (select s.id
              from runwire.streams s
              join unnest(stream_ids, stream_seqs, stream_executions)
                   as known (id, next_seq, execution)
                on s.id = known.id and s.next_seq = known.next_seq
               and s.execution = known.execution
             where s.id = any(stream_ids) and s.ended_execution is null
             order by s.run_id, s.key
               for no key update of s) as locked;
    if held <> cardinality(stream_ids) then
        return;
    end if;
    update runwire.writers w
       set last_no = in_number, last_result = 'null',
           updated_at = case when w.updated_at < at - interval '1 hour' then at
                             else w.updated_at end
     where w.environment_id = in_environment and w.target = 'chunks' and w.writer_id = in_writer
       and w.last_no = in_after;
    if not found then
        return;
    end if;
    update runwire.streams s
       set next_seq = s.next_seq + new.count, bytes = s.bytes + new.bytes,
           ended_execution = new.ended
      from unnest(stream_ids, stream_counts, stream_bytes, stream_ends)
           as new (id, count, bytes, ended)
     where s.id = new.id and s.id = any(stream_ids);
    -- Set-returning functions side by side, which need no table of their own between them.
    insert into runwire.stream_chunks
           (bucket, stream_id, seq, execution, attempt, writer, body, created_at)
    select piece.bucket, piece.stream_id,
           generate_series(piece.seq, piece.seq + piece.count - 1),
           piece.execution, piece.attempt, piece.writer,
           unnest(string_to_array(piece.bodies, e'\x1e')), at
      from unnest(piece_buckets, piece_streams, piece_seqs, piece_counts, piece_executions,
                  piece_attempts, piece_writers, string_to_array(bodies, e'\x1d'))
           as piece (bucket, stream_id, seq, count, execution, attempt, writer, bodies);
    stored := true;
    commit;
    if bell is not null then
        perform pg_notify('runwire_feed', bell);
    end if;
end $$;
CREATE PROCEDURE runwire.append_lone_v1(IN in_environment integer, IN in_run text, IN in_status text, IN in_execution integer, IN in_stream bigint, IN in_seq bigint, IN in_stream_execution integer, IN in_count integer, IN in_bytes bigint, IN in_end integer, IN in_bucket date, IN by_execution integer, IN by_attempt integer, IN by_writer text, IN bodies text, IN in_writer text, IN in_after bigint, IN in_number bigint, IN bell text, IN in_session boolean, INOUT stored boolean)
    LANGUAGE plpgsql
    AS $$
declare
    at timestamptz := runwire.now_v1();
begin
    stored := false;
    if not in_session then
        perform set_config('lock_timeout', '200ms', true),
                set_config('plan_cache_mode', 'force_generic_plan', true),
                set_config('enable_seqscan', 'off', true);
    end if;
    perform from runwire.runs r
      where r.environment_id = in_environment and r.id = in_run
        and r.status = in_status and r.execution = in_execution
        for share;
    if not found then
        return;
    end if;
    update runwire.streams s
       set next_seq = s.next_seq + in_count, bytes = s.bytes + in_bytes, ended_execution = in_end
     where s.id = in_stream and s.next_seq = in_seq
       and s.execution = in_stream_execution and s.ended_execution is null;
    if not found then
        return;
    end if;
    update runwire.writers w
       set last_no = in_number, last_result = 'null',
           updated_at = case when w.updated_at < at - interval '1 hour' then at
                             else w.updated_at end
     where w.environment_id = in_environment and w.target = 'chunks' and w.writer_id = in_writer
       and w.last_no = in_after;
    if not found then
        rollback;
        return;
    end if;
    insert into runwire.stream_chunks
           (bucket, stream_id, seq, execution, attempt, writer, body, created_at)
    select in_bucket, in_stream, generate_series(in_seq, in_seq + in_count - 1),
           by_execution, by_attempt, by_writer, unnest(string_to_array(bodies, e'\x1e')), at;
    stored := true;
    commit;
    if bell is not null then
        perform pg_notify('runwire_feed', bell);
    end if;
end $$;
CREATE FUNCTION runwire.check_run_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $_$
declare
    broken text := case
        when new.id !~ '^run_[0-9a-z]+$' or length(new.id) not between 12 and 68
            then 'runs_id_check'
        when cardinality(new.tags) > 10 then 'runs_tags_check'
        when new.ttl <= 0 then 'runs_ttl_check'
        when new.max_duration <= 0 then 'runs_max_duration_check'
        else 'runs_status_check' end;
begin
    raise exception 'new row for relation "runs" violates check constraint "%"', broken
        using errcode = 'check_violation', schema = 'runwire', table = 'runs', constraint = broken;
end
$_$;
CREATE FUNCTION runwire.close_day_v1(day date, final_before timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
declare
    parent text;
    child text;
    last xid8;
begin
    perform set_config('lock_timeout', '200ms', true);
    foreach parent in array array['run_events', 'stream_chunks'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass('runwire.' || child) is not null then
            execute format('lock table runwire.%I in share row exclusive mode', child);
        end if;
    end loop;
    if exists (select from runwire.closed_days d where d.bucket = day) then
        return true;
    end if;
    if exists (select from runwire.keeper_of_day_v1(day, final_before)) then
        return false;
    end if;
    foreach parent in array array['run_events', 'stream_chunks'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass('runwire.' || child) is not null then
            execute format('create trigger refuse_closed_day before insert on runwire.%I'
                           ' for each row execute function runwire.refuse_closed_day_v1()', child);
            if parent = 'run_events' then
                execute format('select txid from runwire.%I order by txid desc limit 1', child)
                   into last;
            end if;
        end if;
    end loop;
    insert into runwire.closed_days (bucket, last_txid) values (day, last);
    return true;
end
$$;
CREATE FUNCTION runwire.epoch_v1() RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select left(md5(concat_ws('/', s.system_identifier, c.timeline_id, d.oid, g.generation)), 16)
      from pg_control_system() s, pg_control_checkpoint() c, pg_database d, runwire.generations g
     where d.datname = current_database()
$$;
CREATE FUNCTION runwire.epoch_v2() RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select left(md5(concat_ws('/', s.system_identifier,
                              case when pg_is_in_recovery() then c.timeline_id
                                   else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))
                                        ::bit(32)::integer end,
                              d.oid, g.generation)), 16)
      from pg_control_system() s, pg_control_checkpoint() c, pg_database d, runwire.generations g
     where d.datname = current_database()
$$;
CREATE FUNCTION runwire.guard_final_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    raise exception 'run % is final (%); its outcome cannot change', old.id, old.status
        using errcode = 'RW002';
end
$$;
CREATE FUNCTION runwire.guard_transition_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if not exists (select from runwire.run_transitions t
                    where t.from_status = old.status and t.to_status = new.status) then
        raise exception 'run % cannot go from % to %', old.id, old.status, new.status
            using errcode = 'RW001';
    end if;
    return new;
end
$$;
CREATE FUNCTION runwire.now_v1() RETURNS timestamp with time zone
    LANGUAGE sql PARALLEL SAFE
    AS $$
    select coalesce(nullif(current_setting('runwire.now', true), '')::timestamptz, clock_timestamp())
$$;
CREATE TABLE runwire.waits (
    environment_id integer NOT NULL,
    run_id text NOT NULL,
    generation integer NOT NULL,
    branch text NOT NULL,
    ordinal integer NOT NULL,
    kind text NOT NULL,
    target text NOT NULL,
    open boolean NOT NULL,
    run_ids text[] DEFAULT '{}'::text[] NOT NULL,
    cached_ids text[] DEFAULT '{}'::text[] NOT NULL,
    batch_id text,
    waitpoint_id text,
    stream_key text,
    seq bigint,
    due_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    CONSTRAINT waits_kind_check CHECK ((kind = ANY (ARRAY['trigger'::text, 'run'::text, 'batch'::text, 'time'::text, 'token'::text, 'input'::text]))),
    CONSTRAINT waits_ordinal_check CHECK ((ordinal >= 0))
);
CREATE FUNCTION runwire.is_over_v1(w runwire.waits, now timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select case w.kind
        when 'time' then w.due_at <= now
        when 'token' then exists (
            select from runwire.waitpoints p
             where p.environment_id = w.environment_id and p.id = w.waitpoint_id
               and p.completed_at is not null)
        when 'input' then coalesce(w.due_at <= now, false) or exists (
            select from runwire.streams s
             where s.environment_id = w.environment_id and s.run_id = w.run_id
               and s.key = w.stream_key and s.next_seq > w.seq)
        else not exists (
            select from unnest(w.run_ids) as target (id)
             cross join lateral (
                   select r.finished_at
                     from runwire.runs r
                    where r.environment_id = w.environment_id and r.id = target.id
                    limit 1) as awaited
             where awaited.finished_at is null)
    end
$$;
CREATE FUNCTION runwire.keeper_of_day_v1(day date, final_before timestamp with time zone) RETURNS TABLE(environment_id integer, run_id text)
    LANGUAGE sql STABLE
    AS $$
    select r.environment_id, r.id
      from runwire.environments e
     cross join lateral (
          select r.environment_id, r.id
            from runwire.runs r
           where r.environment_id = e.id
             and r.created_at >= day::timestamp at time zone 'UTC'
             and r.created_at < (day + 1)::timestamp at time zone 'UTC'
             and (r.finished_at is null or r.finished_at > final_before)
           limit 1) as r
     limit 1
$$;
CREATE FUNCTION runwire.make_partitions_v1(first_day date, last_day date) RETURNS integer
    LANGUAGE plpgsql
    AS $$
declare
    day date;
    parent text;
    child text;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('runwire.make_partitions'));
    for day in select d::date from generate_series(first_day, last_day, interval '1 day') d loop
        foreach parent in array array['run_events', 'stream_chunks'] loop
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            if to_regclass('runwire.' || child) is null then
                execute format('create table runwire.%I partition of runwire.%I for values from (%L) to (%L)',
                               child, parent, day, day + 1);
                made := made + 1;
            end if;
        end loop;
    end loop;
    return made;
end
$$;
CREATE FUNCTION runwire.make_partitions_v2(first_day date, last_day date) RETURNS integer
    LANGUAGE plpgsql
    AS $$
declare
    day date;
    parent text;
    child text;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('runwire.make_partitions'));
    for day in
        select d::date from generate_series(first_day, last_day, interval '1 day') d
         where not exists (select from runwire.closed_days c where c.bucket = d::date)
    loop
        foreach parent in array array['run_events', 'stream_chunks'] loop
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            if to_regclass('runwire.' || child) is null then
                execute format('create table runwire.%I (like runwire.%I including all)', child, parent);
                execute format('alter table runwire.%I attach partition runwire.%I'
                               ' for values from (%L) to (%L)', parent, child, day, day + 1);
                made := made + 1;
            end if;
        end loop;
    end loop;
    return made;
end
$$;
CREATE FUNCTION runwire.note_cancel_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if exists (select from runwire.runs r
                where r.environment_id = new.environment_id and r.parent_id = new.id
                  and r.finished_at is null) then
        insert into runwire.cancellations (environment_id, run_id)
        values (new.environment_id, new.id)
            on conflict do nothing;
    end if;
    return null;
end
$$;
CREATE FUNCTION runwire.note_end_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    insert into runwire.wakes (environment_id, target_id)
    values (new.environment_id, new.id)
        on conflict do nothing;
    return null;
end
$$;
CREATE FUNCTION runwire.refuse_closed_day_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    raise exception 'the history of % is closed', new.bucket using errcode = 'RW003';
end
$$;
CREATE PROCEDURE runwire.trigger_lone_v1(IN in_environment integer, IN in_id text, IN in_task text, IN in_concurrency_key text, IN in_payload text, IN in_payload_type text, IN in_metadata text, IN in_delay_until timestamp with time zone, IN in_delay double precision, IN in_ttl double precision, IN in_max_attempts integer, IN in_max_duration double precision, IN in_priority double precision, IN in_tags text[], IN in_is_test boolean, IN in_request_key text, IN rings boolean, INOUT made_queue text)
    LANGUAGE plpgsql
    AS $_$
declare
    at timestamptz := runwire.now_v1();
    due timestamptz := greatest(
        coalesce(in_delay_until, at + make_interval(secs => in_delay)), at);
    run_bucket date := (at at time zone 'UTC')::date;
    run_status text := case when due > at then 'DELAYED' else 'QUEUED' end;
    run_queue text;
    run_ttl double precision := in_ttl;
    run_max_duration double precision := in_max_duration;
    queue_limit integer;
begin
    made_queue := null;
    select t.queue, coalesce(in_ttl, t.ttl), coalesce(in_max_duration, t.max_duration),
           g.concurrency_limit
      into run_queue, run_ttl, run_max_duration, queue_limit
      from runwire.tasks t
      left join runwire.queue_groups g
        on g.environment_id = in_environment and g.queue = t.queue and g.concurrency_key = ''
     where t.environment_id = in_environment and t.id = in_task;
    if not found then
        return;
    end if;
    if in_request_key is not null then
        -- Waits for whoever is using it.
        insert into runwire.request_keys (environment_id, operation, key, target_id, created_at)
        values (in_environment, 'trigger', in_request_key, in_id, at)
            on conflict do nothing;
        if not found then
            return;
        end if;
    end if;
    insert into runwire.runs
           (environment_id, id, bucket, task, status, queue, concurrency_key, limited, sort_at,
            priority, payload, payload_type, tags, is_test, max_attempts, max_duration, ttl,
            expires_at, delayed_until, created_at, updated_at, queued_at)
    values (in_environment, in_id, run_bucket, in_task, run_status, run_queue, in_concurrency_key,
            queue_limit is not null, due - make_interval(secs => in_priority),
            in_priority, in_payload, in_payload_type, in_tags, in_is_test, in_max_attempts,
            run_max_duration, run_ttl, due + make_interval(secs => run_ttl),
            case when due > at then due end, at, at, case when due > at then null else at end)
        on conflict do nothing;
    if not found then
        rollback;
        return;
    end if;
    -- What may change later is told as it was in the beginning; the rest stands in the row.
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags)
    values (run_bucket, in_environment, in_id, 1, 'created',
            concat('{"set":{"status":"', run_status, '","tags":', to_json(in_tags)::text,
                   case when due > at then ',"delayedUntil":"' || runwire.wire_time_v2(due)
                        else ',"queuedAt":"' || runwire.wire_time_v2(at) end, '"',
                   case when octet_length(in_metadata) > 8192
                        then ',"metadata":{"$large":{"bytes":' || octet_length(in_metadata) || '}}'
                        when in_metadata is not null then ',"metadata":' || in_metadata end,
                   '}}'),
            at, in_task, in_tags);
    if in_tags <> '{}' then
        insert into runwire.run_tags (environment_id, tag, created_at, run_id)
        select in_environment, unnest(in_tags), at, in_id
            on conflict do nothing;
    end if;
    if in_metadata is not null then
        insert into runwire.run_metadata (environment_id, run_id, body)
        values (in_environment, in_id, in_metadata);
    end if;
    if queue_limit is not null and in_concurrency_key <> '' then
        insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit)
        values (in_environment, run_queue, in_concurrency_key, queue_limit)
            on conflict do nothing;
    end if;
    made_queue := run_queue;
    commit;
    if rings then
        perform pg_notify('runwire_work', concat('{"v":1,"e":', in_environment,
                                                 ',"q":[', to_json(run_queue)::text, ']}')),
                pg_notify('runwire_feed', concat('{"v":1,"e":', in_environment, ',"r":1}'));
    end if;
end $_$;
CREATE PROCEDURE runwire.trigger_lone_v2(IN in_environment integer, IN in_id text, IN in_task text, IN in_concurrency_key text, IN in_payload text, IN in_payload_type text, IN in_metadata text, IN in_delay_until timestamp with time zone, IN in_delay double precision, IN in_ttl double precision, IN in_max_attempts integer, IN in_max_duration double precision, IN in_priority double precision, IN in_tags text[], IN in_is_test boolean, IN in_request_key text, IN rings boolean, INOUT made_queue text)
    LANGUAGE plpgsql
    AS $_$
declare
    at timestamptz := runwire.now_v1();
    due timestamptz := greatest(
        coalesce(in_delay_until, at + make_interval(secs => in_delay)), at);
    run_bucket date := (at at time zone 'UTC')::date;
    run_status text := case when due > at then 'DELAYED' else 'QUEUED' end;
    run_queue text;
    run_ttl double precision := in_ttl;
    run_max_duration double precision := in_max_duration;
    queue_limit integer;
begin
    made_queue := null;
    select t.queue, coalesce(in_ttl, t.ttl), coalesce(in_max_duration, t.max_duration),
           g.concurrency_limit
      into run_queue, run_ttl, run_max_duration, queue_limit
      from runwire.tasks t
      left join runwire.queue_groups g
        on g.environment_id = in_environment and g.queue = t.queue and g.concurrency_key = ''
     where t.environment_id = in_environment and t.id = in_task;
    if not found then
        return;
    end if;
    if in_request_key is not null then
        -- Waits for whoever is using it.
        insert into runwire.request_keys (environment_id, operation, key, target_id, created_at)
        values (in_environment, 'trigger', in_request_key, in_id, at)
            on conflict do nothing;
        if not found then
            return;
        end if;
    end if;
    insert into runwire.runs
           (environment_id, id, bucket, task, status, queue, concurrency_key, limited, sort_at,
            priority, payload, payload_type, tags, is_test, max_attempts, max_duration, ttl,
            expires_at, delayed_until, created_at, updated_at, queued_at)
    values (in_environment, in_id, run_bucket, in_task, run_status, run_queue, in_concurrency_key,
            queue_limit is not null, due - make_interval(secs => in_priority),
            in_priority, in_payload, in_payload_type, in_tags, in_is_test, in_max_attempts,
            run_max_duration, run_ttl, due + make_interval(secs => run_ttl),
            case when due > at then due end, at, at, case when due > at then null else at end)
        on conflict do nothing;
    if not found then
        rollback;
        return;
    end if;
    -- What may change later is told as it was in the beginning; the rest stands in the row.
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags)
    values (run_bucket, in_environment, in_id, 1, 'created',
            concat('{"set":{"status":"', run_status, '","tags":', to_json(in_tags)::text,
                   case when due > at then ',"delayedUntil":"' || runwire.wire_time_v2(due)
                        else ',"queuedAt":"' || runwire.wire_time_v2(at) end, '"',
                   case when octet_length(in_metadata) > 8192
                        then ',"metadata":{"$large":{"bytes":' || octet_length(in_metadata) || '}}'
                        when in_metadata is not null then ',"metadata":' || in_metadata end,
                   '}}'),
            at, in_task, in_tags);
    if in_tags <> '{}' then
        insert into runwire.run_tags (environment_id, tag, created_at, run_id)
        select in_environment, unnest(in_tags), at, in_id
            on conflict do nothing;
    end if;
    if in_metadata is not null then
        insert into runwire.run_metadata (environment_id, run_id, body)
        values (in_environment, in_id, in_metadata);
    end if;
    if queue_limit is not null and in_concurrency_key <> '' then
        insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit)
        values (in_environment, run_queue, in_concurrency_key, queue_limit)
            on conflict do nothing;
    end if;
    made_queue := run_queue;
    commit;
    if rings then
        perform pg_notify('runwire_work', concat('{"v":1,"e":', in_environment,
                                                 ',"q":[', to_json(run_queue)::text, ']',
                                                 case when due = at and queue_limit is null
                                                      then ',"i":"' || in_id || '"' end, '}')),
                pg_notify('runwire_feed', concat('{"v":1,"e":', in_environment, ',"r":1}'));
    end if;
end $_$;
CREATE FUNCTION runwire.wire_time_v1(at timestamp with time zone) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;
CREATE FUNCTION runwire.wire_time_v2(at timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;
CREATE TABLE runwire.api_keys (
    id bigint NOT NULL,
    environment_id integer NOT NULL,
    hash bytea NOT NULL,
    hint text NOT NULL,
    name text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    revoked_at timestamp with time zone,
    CONSTRAINT api_keys_hash_check CHECK ((octet_length(hash) = 32))
);
ALTER TABLE runwire.api_keys ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME runwire.api_keys_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE runwire.batch_items (
    environment_id integer NOT NULL,
    batch_id text NOT NULL,
    index integer NOT NULL,
    run_id text NOT NULL,
    CONSTRAINT batch_items_index_check CHECK ((index >= 0))
);
CREATE TABLE runwire.batches (
    environment_id integer NOT NULL,
    id text NOT NULL,
    run_count integer NOT NULL,
    sealed boolean DEFAULT false NOT NULL,
    parent_id text,
    idempotency_key text,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    updated_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    is_open boolean DEFAULT false NOT NULL,
    errors text DEFAULT '[]'::text NOT NULL,
    CONSTRAINT batches_id_check CHECK (((id ~ '^batch_[0-9a-z]+$'::text) AND ((length(id) >= 14) AND (length(id) <= 70)))),
    CONSTRAINT batches_run_count_check CHECK ((run_count >= 0))
);
CREATE TABLE runwire.cancellations (
    environment_id integer NOT NULL,
    run_id text NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL
);
CREATE TABLE runwire.checkpoints (
    environment_id integer NOT NULL,
    run_id text NOT NULL,
    generation integer NOT NULL,
    marks text NOT NULL
);
CREATE TABLE runwire.closed_days (
    bucket date NOT NULL,
    epoch text DEFAULT runwire.epoch_v2() NOT NULL,
    last_txid xid8,
    closed_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    dropped_at timestamp with time zone,
    emptied_at timestamp with time zone
);
CREATE TABLE runwire.debounce_keys (
    environment_id integer NOT NULL,
    task text NOT NULL,
    key text NOT NULL,
    run_id text NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT debounce_keys_key_check CHECK (((length(key) >= 1) AND (length(key) <= 512)))
);
CREATE TABLE runwire.environments (
    id integer NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    CONSTRAINT environments_name_check CHECK ((name ~ '^[a-z][a-z0-9-]{0,62}$'::text))
);
ALTER TABLE runwire.environments ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME runwire.environments_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE runwire.generations (
    only_row boolean DEFAULT true NOT NULL,
    generation uuid DEFAULT gen_random_uuid() NOT NULL,
    CONSTRAINT generations_only_row_check CHECK (only_row)
);
CREATE TABLE runwire.idempotency_keys (
    environment_id integer NOT NULL,
    task text NOT NULL,
    key text NOT NULL,
    run_id text NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT idempotency_keys_key_check CHECK (((length(key) >= 1) AND (length(key) <= 2048)))
);
CREATE TABLE runwire.migrations (
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
CREATE TABLE runwire.queue_groups (
    environment_id integer NOT NULL,
    queue text NOT NULL,
    concurrency_key text DEFAULT ''::text NOT NULL,
    concurrency_limit integer NOT NULL,
    last_served timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    turns bigint DEFAULT 0 NOT NULL,
    CONSTRAINT queue_groups_concurrency_limit_check CHECK ((concurrency_limit >= 0))
)
WITH (fillfactor='70');
CREATE TABLE runwire.queues (
    environment_id integer NOT NULL,
    name text NOT NULL,
    id text GENERATED ALWAYS AS (('queue_'::text || "left"(md5((((environment_id)::text || '/'::text) || name)), 24))) STORED NOT NULL,
    base_limit integer,
    override_limit integer,
    overridden_at timestamp with time zone,
    paused boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    updated_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    CONSTRAINT overridden_at_a_time CHECK (((override_limit IS NULL) = (overridden_at IS NULL))),
    CONSTRAINT queues_base_limit_check CHECK ((base_limit >= 0)),
    CONSTRAINT queues_name_check CHECK (((length(name) >= 1) AND (length(name) <= 256))),
    CONSTRAINT queues_override_limit_check CHECK ((override_limit >= 0))
);
CREATE TABLE runwire.request_keys (
    environment_id integer NOT NULL,
    operation text NOT NULL,
    key text NOT NULL,
    target_id text NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    CONSTRAINT request_keys_key_check CHECK (((length(key) >= 1) AND (length(key) <= 256)))
);
CREATE TABLE runwire.revoked_tokens (
    environment_id integer NOT NULL,
    jti text NOT NULL,
    expires_at timestamp with time zone NOT NULL
);
CREATE TABLE runwire.run_events (
    bucket date NOT NULL,
    environment_id integer NOT NULL,
    run_id text NOT NULL,
    revision bigint NOT NULL,
    type text NOT NULL,
    delta text NOT NULL,
    txid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    task text NOT NULL,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    batch_id text
)
PARTITION BY RANGE (bucket);
CREATE TABLE runwire.run_metadata (
    environment_id integer NOT NULL,
    run_id text NOT NULL,
    body text NOT NULL,
    CONSTRAINT run_metadata_body_check CHECK ((octet_length(body) <= 262144))
)
WITH (fillfactor='70');
CREATE TABLE runwire.run_tags (
    environment_id integer NOT NULL,
    tag text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    run_id text NOT NULL,
    CONSTRAINT run_tags_tag_check CHECK (((length(tag) >= 1) AND (length(tag) <= 128)))
);
CREATE TABLE runwire.run_transitions (
    from_status text NOT NULL,
    to_status text NOT NULL
);
CREATE TABLE runwire.runs (
    environment_id integer NOT NULL,
    id text NOT NULL,
    bucket date NOT NULL,
    task text NOT NULL,
    status text NOT NULL,
    revision bigint DEFAULT 1 NOT NULL,
    execution integer DEFAULT 0 NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    max_attempts integer,
    queue text NOT NULL,
    concurrency_key text DEFAULT ''::text NOT NULL,
    limited boolean DEFAULT false NOT NULL,
    sort_at timestamp with time zone NOT NULL,
    priority double precision DEFAULT 0 NOT NULL,
    worker_id text,
    version text,
    payload text,
    payload_type text DEFAULT 'application/json'::text NOT NULL,
    output text,
    output_type text,
    error text,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    stream_keys text[] DEFAULT '{}'::text[] NOT NULL,
    parent_id text,
    root_id text,
    depth integer DEFAULT 0 NOT NULL,
    batch_id text,
    idempotency_key text,
    is_test boolean DEFAULT false NOT NULL,
    max_duration double precision,
    ttl double precision,
    expires_at timestamp with time zone,
    delayed_until timestamp with time zone,
    cancel_requested_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    queued_at timestamp with time zone,
    started_at timestamp with time zone,
    claimed_at timestamp with time zone,
    duration_ms bigint DEFAULT 0 NOT NULL,
    finished_at timestamp with time zone,
    expired_at timestamp with time zone,
    awaited boolean DEFAULT false NOT NULL,
    resuming boolean DEFAULT false NOT NULL,
    parked_by text,
    generation integer DEFAULT 0 NOT NULL,
    lineage integer DEFAULT 0 NOT NULL,
    waited integer DEFAULT 0 NOT NULL,
    active_ms bigint DEFAULT 0 NOT NULL,
    wake_at timestamp with time zone,
    schedule_id text,
    scheduled_at timestamp with time zone,
    reserved_stream_keys text[] DEFAULT '{}'::text[] NOT NULL,
    CONSTRAINT finished_exactly_when_final CHECK (((finished_at IS NOT NULL) = (status = ANY (ARRAY['COMPLETED'::text, 'CANCELED'::text, 'FAILED'::text, 'CRASHED'::text, 'SYSTEM_FAILURE'::text, 'EXPIRED'::text, 'TIMED_OUT'::text])))),
    CONSTRAINT held_by_a_worker CHECK (
CASE
    WHEN (status = ANY (ARRAY['DEQUEUED'::text, 'EXECUTING'::text])) THEN (worker_id IS NOT NULL)
    WHEN (status = 'WAITING'::text) THEN true
    ELSE (worker_id IS NULL)
END),
    CONSTRAINT runs_counts_check CHECK (((attempt >= 0) AND (execution >= 0) AND (revision > 0) AND (max_attempts > 0)))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');
CREATE TABLE runwire.schedules (
    environment_id integer NOT NULL,
    id text NOT NULL,
    type text NOT NULL,
    task text NOT NULL,
    cron text NOT NULL,
    timezone text DEFAULT 'UTC'::text NOT NULL,
    due_window text,
    missed text DEFAULT 'newest'::text NOT NULL,
    deduplication_key text NOT NULL,
    external_id text,
    active boolean DEFAULT true NOT NULL,
    suspended_at timestamp with time zone,
    next_at timestamp with time zone,
    due_at timestamp with time zone,
    last_at timestamp with time zone,
    error text,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    CONSTRAINT due_exactly_when_next CHECK (((due_at IS NULL) = (next_at IS NULL))),
    CONSTRAINT due_only_when_active CHECK ((active OR (due_at IS NULL))),
    CONSTRAINT schedules_deduplication_key_check CHECK (((length(deduplication_key) >= 1) AND (length(deduplication_key) <= 256))),
    CONSTRAINT schedules_external_id_check CHECK ((length(external_id) <= 256)),
    CONSTRAINT schedules_id_check CHECK ((id ~ '^sched_[0-9a-z]{8,64}$'::text)),
    CONSTRAINT schedules_missed_check CHECK ((missed = ANY (ARRAY['newest'::text, 'all'::text]))),
    CONSTRAINT schedules_task_check CHECK (((length(task) >= 1) AND (length(task) <= 128))),
    CONSTRAINT schedules_type_check CHECK ((type = ANY (ARRAY['DECLARATIVE'::text, 'IMPERATIVE'::text])))
)
WITH (fillfactor='70');
CREATE TABLE runwire.stream_chunks (
    bucket date NOT NULL,
    stream_id bigint NOT NULL,
    seq bigint NOT NULL,
    execution integer,
    attempt integer,
    writer text,
    body text NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    CONSTRAINT owner_or_writer CHECK (((execution IS NULL) = (writer IS NOT NULL))),
    CONSTRAINT stream_chunks_body_check CHECK ((octet_length(body) <= 1048576)),
    CONSTRAINT stream_chunks_seq_check CHECK ((seq >= 0))
)
PARTITION BY RANGE (bucket);
CREATE TABLE runwire.streams (
    id bigint NOT NULL,
    environment_id integer NOT NULL,
    run_id text NOT NULL,
    key text NOT NULL,
    bucket date NOT NULL,
    next_seq bigint DEFAULT 0 NOT NULL,
    bytes bigint DEFAULT 0 NOT NULL,
    execution integer DEFAULT 0 NOT NULL,
    attempts text DEFAULT '[]'::text NOT NULL,
    ended_execution integer,
    eof_reason text,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    CONSTRAINT streams_key_check CHECK (((length(key) >= 1) AND (length(key) <= 128))),
    CONSTRAINT streams_next_seq_check CHECK ((next_seq >= 0))
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');
ALTER TABLE runwire.streams ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME runwire.streams_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE runwire.tasks (
    environment_id integer NOT NULL,
    id text NOT NULL,
    queue text NOT NULL,
    retry text DEFAULT '{}'::text NOT NULL,
    max_duration double precision,
    payload_schema text,
    description text DEFAULT ''::text NOT NULL,
    updated_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    ttl double precision,
    CONSTRAINT tasks_id_check CHECK (((length(id) >= 1) AND (length(id) <= 128))),
    CONSTRAINT tasks_max_duration_check CHECK ((max_duration > (0)::double precision)),
    CONSTRAINT tasks_ttl_check CHECK ((ttl > (0)::double precision))
);
CREATE TABLE runwire.used_tokens (
    environment_id integer NOT NULL,
    jti text NOT NULL,
    expires_at timestamp with time zone NOT NULL
);
CREATE TABLE runwire.wait_targets (
    environment_id integer NOT NULL,
    target_id text NOT NULL,
    run_id text NOT NULL
);
CREATE TABLE runwire.waitpoints (
    environment_id integer NOT NULL,
    id text NOT NULL,
    ok boolean,
    output text,
    output_type text DEFAULT 'application/json'::text NOT NULL,
    error text,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    timeout_at timestamp with time zone,
    idempotency_key text,
    idempotency_expires_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    completed_at timestamp with time zone,
    CONSTRAINT completed_exactly_when_decided CHECK (((completed_at IS NULL) = (ok IS NULL))),
    CONSTRAINT waitpoints_id_check CHECK (((id ~ '^waitpoint_[0-9a-z]+$'::text) AND ((length(id) >= 18) AND (length(id) <= 74)))),
    CONSTRAINT waitpoints_idempotency_key_check CHECK (((length(idempotency_key) >= 1) AND (length(idempotency_key) <= 2048))),
    CONSTRAINT waitpoints_tags_check CHECK ((cardinality(tags) <= 10))
);
CREATE TABLE runwire.wakes (
    environment_id integer NOT NULL,
    target_id text NOT NULL,
    created_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL
);
CREATE TABLE runwire.workers (
    id text NOT NULL,
    environment_id integer NOT NULL,
    started_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    stopped_at timestamp with time zone,
    host text DEFAULT ''::text NOT NULL,
    process_id integer,
    version text DEFAULT ''::text NOT NULL,
    declares text[] DEFAULT '{}'::text[] NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE runwire.writers (
    environment_id integer NOT NULL,
    target text NOT NULL,
    writer_id text NOT NULL,
    last_no bigint NOT NULL,
    last_result text DEFAULT 'null'::text NOT NULL,
    updated_at timestamp with time zone DEFAULT runwire.now_v1() NOT NULL
)
WITH (fillfactor='50');
ALTER TABLE ONLY runwire.api_keys
    ADD CONSTRAINT api_keys_hash_key UNIQUE (hash);
ALTER TABLE ONLY runwire.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);
ALTER TABLE ONLY runwire.batch_items
    ADD CONSTRAINT batch_items_pkey PRIMARY KEY (environment_id, batch_id, index);
ALTER TABLE ONLY runwire.batches
    ADD CONSTRAINT batches_pkey PRIMARY KEY (environment_id, id);
ALTER TABLE ONLY runwire.cancellations
    ADD CONSTRAINT cancellations_pkey PRIMARY KEY (environment_id, run_id);
ALTER TABLE ONLY runwire.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (environment_id, run_id);
ALTER TABLE ONLY runwire.closed_days
    ADD CONSTRAINT closed_days_pkey PRIMARY KEY (bucket);
ALTER TABLE ONLY runwire.debounce_keys
    ADD CONSTRAINT debounce_keys_pkey PRIMARY KEY (environment_id, task, key);
ALTER TABLE ONLY runwire.environments
    ADD CONSTRAINT environments_name_key UNIQUE (name);
ALTER TABLE ONLY runwire.environments
    ADD CONSTRAINT environments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY runwire.generations
    ADD CONSTRAINT generations_pkey PRIMARY KEY (only_row);
ALTER TABLE ONLY runwire.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (environment_id, task, key);
ALTER TABLE ONLY runwire.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (version);
ALTER TABLE ONLY runwire.queue_groups
    ADD CONSTRAINT queue_groups_pkey PRIMARY KEY (environment_id, queue, concurrency_key);
ALTER TABLE ONLY runwire.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (environment_id, name);
ALTER TABLE ONLY runwire.request_keys
    ADD CONSTRAINT request_keys_pkey PRIMARY KEY (environment_id, operation, key);
ALTER TABLE ONLY runwire.revoked_tokens
    ADD CONSTRAINT revoked_tokens_pkey PRIMARY KEY (environment_id, jti);
ALTER TABLE ONLY runwire.run_events
    ADD CONSTRAINT run_events_pkey PRIMARY KEY (environment_id, run_id, revision, bucket);
ALTER TABLE ONLY runwire.run_metadata
    ADD CONSTRAINT run_metadata_pkey PRIMARY KEY (environment_id, run_id);
ALTER TABLE ONLY runwire.run_tags
    ADD CONSTRAINT run_tags_pkey PRIMARY KEY (environment_id, tag, created_at, run_id);
ALTER TABLE ONLY runwire.run_transitions
    ADD CONSTRAINT run_transitions_pkey PRIMARY KEY (from_status, to_status);
ALTER TABLE ONLY runwire.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (environment_id, id);
ALTER TABLE ONLY runwire.schedules
    ADD CONSTRAINT schedules_environment_id_type_deduplication_key_key UNIQUE (environment_id, type, deduplication_key);
ALTER TABLE ONLY runwire.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (environment_id, id);
ALTER TABLE ONLY runwire.stream_chunks
    ADD CONSTRAINT stream_chunks_pkey PRIMARY KEY (stream_id, seq, bucket);
ALTER TABLE ONLY runwire.streams
    ADD CONSTRAINT streams_id_key UNIQUE (id);
ALTER TABLE ONLY runwire.streams
    ADD CONSTRAINT streams_pkey PRIMARY KEY (environment_id, run_id, key);
ALTER TABLE ONLY runwire.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (environment_id, id);
ALTER TABLE ONLY runwire.used_tokens
    ADD CONSTRAINT used_tokens_pkey PRIMARY KEY (environment_id, jti);
ALTER TABLE ONLY runwire.wait_targets
    ADD CONSTRAINT wait_targets_pkey PRIMARY KEY (environment_id, target_id, run_id);
ALTER TABLE ONLY runwire.waitpoints
    ADD CONSTRAINT waitpoints_pkey PRIMARY KEY (environment_id, id);
ALTER TABLE ONLY runwire.waits
    ADD CONSTRAINT waits_pkey PRIMARY KEY (environment_id, run_id, generation, branch, ordinal);
ALTER TABLE ONLY runwire.wakes
    ADD CONSTRAINT wakes_pkey PRIMARY KEY (environment_id, target_id);
ALTER TABLE ONLY runwire.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (id);
ALTER TABLE ONLY runwire.writers
    ADD CONSTRAINT writers_pkey PRIMARY KEY (environment_id, target, writer_id);
CREATE INDEX batch_items_by_run ON runwire.batch_items USING btree (environment_id, run_id);
CREATE INDEX batches_unsealed ON runwire.batches USING btree (updated_at) WHERE (NOT sealed);
CREATE INDEX cancellations_by_age ON runwire.cancellations USING btree (created_at);
CREATE INDEX debounce_keys_expiring ON runwire.debounce_keys USING btree (expires_at);
CREATE INDEX idempotency_keys_by_run ON runwire.idempotency_keys USING btree (environment_id, run_id);
CREATE INDEX idempotency_keys_expiring ON runwire.idempotency_keys USING btree (expires_at);
CREATE UNIQUE INDEX queues_by_id ON runwire.queues USING btree (environment_id, id);
CREATE INDEX request_keys_by_age ON runwire.request_keys USING btree (created_at);
CREATE INDEX revoked_tokens_expiring ON runwire.revoked_tokens USING btree (expires_at);
CREATE INDEX run_events_by_txid ON ONLY runwire.run_events USING btree (txid);
CREATE INDEX runs_by_creation ON runwire.runs USING btree (environment_id, created_at DESC, id DESC);
CREATE INDEX runs_by_parent ON runwire.runs USING btree (environment_id, parent_id, created_at DESC, id DESC) WHERE (parent_id IS NOT NULL);
CREATE INDEX runs_by_schedule ON runwire.runs USING btree (environment_id, schedule_id, created_at DESC, id DESC) WHERE (schedule_id IS NOT NULL);
CREATE INDEX runs_by_task ON runwire.runs USING btree (environment_id, task, created_at DESC, id DESC);
CREATE UNIQUE INDEX runs_by_tick ON runwire.runs USING btree (environment_id, schedule_id, scheduled_at) WHERE (schedule_id IS NOT NULL);
CREATE INDEX runs_delayed ON runwire.runs USING btree (environment_id, delayed_until) WHERE (status = 'DELAYED'::text);
CREATE INDEX runs_executing ON runwire.runs USING btree (environment_id, queue, concurrency_key) WHERE (status = ANY (ARRAY['DEQUEUED'::text, 'EXECUTING'::text]));
CREATE INDEX runs_expiring ON runwire.runs USING btree (expires_at) WHERE ((status = ANY (ARRAY['DELAYED'::text, 'QUEUED'::text, 'PENDING_VERSION'::text])) AND (expires_at IS NOT NULL));
CREATE INDEX runs_failed ON runwire.runs USING btree (environment_id, created_at DESC, id DESC) WHERE (status = ANY (ARRAY['CANCELED'::text, 'FAILED'::text, 'CRASHED'::text, 'SYSTEM_FAILURE'::text, 'EXPIRED'::text, 'TIMED_OUT'::text]));
CREATE INDEX runs_held ON runwire.runs USING btree (worker_id) WHERE (status = ANY (ARRAY['DEQUEUED'::text, 'EXECUTING'::text]));
CREATE INDEX runs_open ON runwire.runs USING btree (environment_id, created_at DESC, id DESC) WHERE (finished_at IS NULL);
CREATE INDEX runs_open_children ON runwire.runs USING btree (environment_id, parent_id) WHERE ((parent_id IS NOT NULL) AND (finished_at IS NULL));
CREATE INDEX runs_ready ON runwire.runs USING btree (environment_id, task, sort_at, id) WHERE ((status = 'QUEUED'::text) AND (NOT limited));
CREATE INDEX runs_ready_limited ON runwire.runs USING btree (environment_id, queue, concurrency_key, sort_at, id) WHERE ((status = 'QUEUED'::text) AND limited);
CREATE INDEX runs_waking ON runwire.runs USING btree (environment_id, wake_at) WHERE ((status = 'WAITING'::text) AND (wake_at IS NOT NULL));
CREATE INDEX schedules_by_age ON runwire.schedules USING btree (environment_id, created_at, id);
CREATE INDEX schedules_due ON runwire.schedules USING btree (due_at) WHERE ((due_at IS NOT NULL) AND (suspended_at IS NULL));
CREATE INDEX schedules_suspended ON runwire.schedules USING btree (suspended_at) WHERE (suspended_at IS NOT NULL);
CREATE INDEX used_tokens_expiring ON runwire.used_tokens USING btree (expires_at);
CREATE INDEX wait_targets_by_run ON runwire.wait_targets USING btree (environment_id, run_id);
CREATE INDEX waitpoints_by_creation ON runwire.waitpoints USING btree (environment_id, created_at DESC, id DESC);
CREATE UNIQUE INDEX waitpoints_by_key ON runwire.waitpoints USING btree (environment_id, idempotency_key) WHERE (idempotency_key IS NOT NULL);
CREATE INDEX waitpoints_completed ON runwire.waitpoints USING btree (completed_at) WHERE (completed_at IS NOT NULL);
CREATE INDEX waitpoints_due ON runwire.waitpoints USING btree (environment_id, timeout_at) WHERE ((completed_at IS NULL) AND (timeout_at IS NOT NULL));
CREATE INDEX waits_inputs ON runwire.waits USING btree (environment_id, run_id) WHERE (open AND (kind = 'input'::text));
CREATE INDEX wakes_by_age ON runwire.wakes USING btree (created_at);
CREATE INDEX workers_live ON runwire.workers USING btree (expires_at) WHERE (stopped_at IS NULL);
CREATE INDEX writers_by_age ON runwire.writers USING btree (updated_at);
CREATE TRIGGER check_changed AFTER UPDATE OF id, tags, ttl, max_duration ON runwire.runs FOR EACH ROW WHEN (((new.id !~ '^run_[0-9a-z]+$'::text) OR ((length(new.id) < 12) OR (length(new.id) > 68)) OR (cardinality(new.tags) > 10) OR (new.ttl <= (0)::double precision) OR (new.max_duration <= (0)::double precision))) EXECUTE FUNCTION runwire.check_run_v1();
CREATE TRIGGER check_new AFTER INSERT ON runwire.runs FOR EACH ROW WHEN (((new.id !~ '^run_[0-9a-z]+$'::text) OR ((length(new.id) < 12) OR (length(new.id) > 68)) OR (cardinality(new.tags) > 10) OR (new.ttl <= (0)::double precision) OR (new.max_duration <= (0)::double precision) OR (new.status <> ALL (ARRAY['PENDING_VERSION'::text, 'DELAYED'::text, 'QUEUED'::text, 'DEQUEUED'::text, 'EXECUTING'::text, 'WAITING'::text, 'COMPLETED'::text, 'CANCELED'::text, 'FAILED'::text, 'CRASHED'::text, 'SYSTEM_FAILURE'::text, 'EXPIRED'::text, 'TIMED_OUT'::text])))) EXECUTE FUNCTION runwire.check_run_v1();
CREATE TRIGGER guard_final AFTER UPDATE OF output, error, execution, attempt, stream_keys ON runwire.runs FOR EACH ROW WHEN (((old.finished_at IS NOT NULL) AND ((old.output IS DISTINCT FROM new.output) OR (old.error IS DISTINCT FROM new.error) OR (old.execution <> new.execution) OR (old.attempt <> new.attempt) OR (old.stream_keys <> new.stream_keys)))) EXECUTE FUNCTION runwire.guard_final_v1();
CREATE TRIGGER guard_transition AFTER UPDATE OF status ON runwire.runs FOR EACH ROW WHEN (((old.status IS DISTINCT FROM new.status) AND (NOT ((old.status = 'QUEUED'::text) AND (new.status = 'EXECUTING'::text))) AND (NOT ((old.status = 'EXECUTING'::text) AND (new.status = 'COMPLETED'::text))))) EXECUTE FUNCTION runwire.guard_transition_v1();
CREATE TRIGGER note_cancel AFTER UPDATE OF status ON runwire.runs FOR EACH ROW WHEN (((new.status = 'CANCELED'::text) AND (old.finished_at IS NULL))) EXECUTE FUNCTION runwire.note_cancel_v1();
CREATE TRIGGER note_end AFTER UPDATE OF status ON runwire.runs FOR EACH ROW WHEN ((new.awaited AND (new.finished_at IS NOT NULL) AND (old.finished_at IS NULL))) EXECUTE FUNCTION runwire.note_end_v1();
ALTER TABLE ONLY runwire.api_keys
    ADD CONSTRAINT api_keys_environment_id_fkey FOREIGN KEY (environment_id) REFERENCES runwire.environments(id);
