-- Appends to streams that their writer knows, in one round trip.
--
-- The writer has decided what goes where by what it remembers of the runs and streams. Here they are
-- locked, in the same order as everybody does it, and compared: where anything is not as remembered,
-- nothing is written, and `stored` comes back false. Arrays are of equal length by their first word;
-- `bodies` are those of one piece joined by U+001E, pieces joined by U+001D, neither of which JSON
-- text can hold.
--
-- What is stored is committed here, durably, and only then told of: NOTIFY in a transaction of its
-- own, which writes nothing, so that nobody's commit waits for a disk behind it.
create procedure runwire.append_known_v1(
    in_environment integer,
    run_ids text[], run_statuses text[], run_executions integer[],
    stream_ids bigint[], stream_seqs bigint[], stream_executions integer[],
    stream_counts integer[], stream_bytes bigint[], stream_ends integer[],
    piece_streams bigint[], piece_buckets date[], piece_seqs bigint[], piece_executions integer[],
    piece_attempts integer[], piece_writers text[], bodies text,
    in_writer text, in_number bigint, in_result text, bell text,
    inout stored boolean
)
language plpgsql
as $$
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
