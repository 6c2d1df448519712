-- As trigger_lone_v1; its bell names the run if it is ready and goes through no group, so that an idle
-- worker claims it by its id (claims.take_lone) instead of looking for all that is ready.
create procedure runwire.trigger_lone_v2(
    in_environment integer, in_id text, in_task text, in_concurrency_key text,
    in_payload text, in_payload_type text, in_metadata text,
    in_delay_until timestamptz, in_delay double precision, in_ttl double precision,
    in_max_attempts integer, in_max_duration double precision, in_priority double precision,
    in_tags text[], in_is_test boolean, in_request_key text, rings boolean,
    inout made_queue text
)
language plpgsql
as $$
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
end $$;
