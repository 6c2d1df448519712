-- Appends to streams that their writer knows, as append_known_v2, which may follow each other without
-- waiting: each says after which flush of its writer it is to come (`in_after`), and does nothing
-- when that one was refused, or when anybody has written the writer's row meanwhile. So what was
-- refused leaves nothing behind it that counted on it. The row says that a writer lives once an
-- hour, as its index by age would have to follow; its answer is not kept, since the writer knows it.
-- `in_session` says that the session has the settings already, as one behind a pooler cannot.

-- One stream of one run, the most common flush: its rows are reached by plain keys.
create procedure runwire.append_lone_v1(
    in_environment integer, in_run text, in_status text, in_execution integer,
    in_stream bigint, in_seq bigint, in_stream_execution integer,
    in_count integer, in_bytes bigint, in_end integer,
    in_bucket date, by_execution integer, by_attempt integer, by_writer text, bodies text,
    in_writer text, in_after bigint, in_number bigint, bell text, in_session boolean,
    inout stored boolean
)
language plpgsql
as $$
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

create procedure runwire.append_known_v3(
    in_environment integer,
    run_ids text[], run_statuses text[], run_executions integer[],
    stream_ids bigint[], stream_seqs bigint[], stream_executions integer[],
    stream_counts integer[], stream_bytes bigint[], stream_ends integer[],
    piece_streams bigint[], piece_buckets date[], piece_seqs bigint[], piece_counts integer[],
    piece_executions integer[], piece_attempts integer[], piece_writers text[], bodies text,
    in_writer text, in_after bigint, in_number bigint, bell text, in_session boolean,
    inout stored boolean
)
language plpgsql
as $$
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
