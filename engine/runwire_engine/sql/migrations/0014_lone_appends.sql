-- Appends to streams that their writer knows, as append_known_v1, with less work for the most common
-- flush: one stream of one run. Its rows are reached by plain keys, and the stream is compared,
-- locked and moved by one statement; where that finds something else than was remembered, all is
-- rolled back. `piece_counts` says how many chunks a piece has.
create procedure runwire.append_known_v2(
    in_environment integer,
    run_ids text[], run_statuses text[], run_executions integer[],
    stream_ids bigint[], stream_seqs bigint[], stream_executions integer[],
    stream_counts integer[], stream_bytes bigint[], stream_ends integer[],
    piece_streams bigint[], piece_buckets date[], piece_seqs bigint[], piece_counts integer[],
    piece_executions integer[], piece_attempts integer[], piece_writers text[], bodies text,
    in_writer text, in_number bigint, in_result text, bell text,
    inout stored boolean
)
language plpgsql
as $$
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
