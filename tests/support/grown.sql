-- What a big installation holds in millions, in thousands, of "dev" (1) and of a neighbour (2) whose
-- rows come first in every order: finished, ready, ready through a group, delayed, waiting; 100
-- execute. The id of a run says its kind and number.
insert into runwire.environments (name) values ('neighbour');
insert into runwire.tasks (environment_id, id, queue)
select 1, 'task-' || n, 'queue-' || n from generate_series(1, 40) n;
insert into runwire.queues (environment_id, name) select 1, 'queue-' || n from generate_series(1, 40) n;
insert into runwire.queues (environment_id, name, base_limit) values (1, 'narrow', 5);
insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit)
values (1, 'narrow', '', 5);
insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit, last_served)
select 1, 'narrow', 'key-' || n, 5, now() from generate_series(1, %(runs)s) n;
insert into runwire.workers (id, environment_id, expires_at, stopped_at)
select 'worker-' || n, 1, now() + case when n <= 20 then 1 else -1 end * interval '1 hour',
       case when n > 20 then now() - interval '1 hour' end
  from generate_series(1, 100) n;
insert into runwire.runs
       (environment_id, id, bucket, task, status, execution, attempt, queue, concurrency_key, limited,
        sort_at, worker_id, payload, output, tags, stream_keys, batch_id, expires_at, delayed_until,
        wake_at, waited, claimed_at, parent_id, schedule_id, scheduled_at, created_at, updated_at, queued_at,
        finished_at)
select k.environment_id, 'run_' || k.kind || lpad(n::text, 20, '0'), current_date,
       case when k.kind in ('ready', 'grouped') then 'task-1' else 'task-2' end,
       k.status, (k.kind in ('finished', 'executing', 'waiting'))::integer, 1,
       case k.kind when 'grouped' then 'narrow' else 'queue-2' end,
       case k.kind when 'grouped' then 'key-' || n % 100 else '' end, k.kind = 'grouped',
       now() - n * interval '1 second',
       case when k.kind = 'executing' then 'worker-' || 1 + n % 20 end, '{"text":"' || repeat('x', 100) || '"}',
       case when k.kind = 'finished' then '{"text":"' || repeat('y', 100) || '"}' end,
       array['everyone', k.kind || '-' || n], array['log'],
       'batch_' || lpad((n / 10)::text, 20, '0'),
       case when k.kind in ('ready', 'delayed') then now() + k.soon + n * interval '1 minute' end,
       case when k.kind = 'delayed' then now() + k.soon + n * interval '1 second' end,
       case when k.kind = 'waiting' then now() + k.soon + n * interval '1 second' end,
       (k.kind = 'waiting')::integer,
       case when k.kind in ('finished', 'executing') then now() end,
       case when n % 100 = 0 then 'run_finished' || lpad('1', 20, '0') end,
       case when n % 100 = 1 and k.kind = 'finished' then 'sched_hourly' end, at.at,
       at.at, at.at, case when k.kind <> 'delayed' then at.at end,
       case when k.kind = 'finished' then at.at end
  from (select * from (values ('finished', 'COMPLETED', %(runs)s), ('ready', 'QUEUED', %(runs)s / 4),
                              ('grouped', 'QUEUED', %(runs)s / 4), ('delayed', 'DELAYED', %(runs)s / 4),
                              ('waiting', 'WAITING', %(runs)s / 4), ('executing', 'EXECUTING', 100))
               as own (kind, status, number)
         cross join (values (1, interval '1 day')) as e (environment_id, soon)
         union all
        select *
          from (values ('finished', 'COMPLETED', %(runs)s / 4), ('ready', 'QUEUED', %(runs)s / 4),
                       ('delayed', 'DELAYED', %(runs)s / 4), ('waiting', 'WAITING', %(runs)s / 4))
               as theirs (kind, status, number)
         cross join (values (2, interval '1 hour')) as e (environment_id, soon)) as k
 cross join lateral generate_series(1, k.number) n
 cross join lateral (
       select greatest(current_date::timestamptz, now() - interval '1 hour') + n * interval '1 millisecond'
              as at) as at;
insert into runwire.run_tags (environment_id, tag, created_at, run_id)
select environment_id, unnest(tags), created_at, id from runwire.runs;
insert into runwire.run_metadata (environment_id, run_id, body)
select environment_id, id, '{"step":1}' from runwire.runs where environment_id = 1;
insert into runwire.batches (environment_id, id, run_count, sealed, created_at)
select 1, 'batch_' || lpad(n::text, 20, '0'), 10, true, now() from generate_series(1, %(runs)s / 10) n;
insert into runwire.batch_items (environment_id, batch_id, index, run_id)
select 1, batch_id, row_number() over (partition by batch_id order by id), id
  from runwire.runs where environment_id = 1 and status = 'COMPLETED';
insert into runwire.run_events (bucket, environment_id, run_id, revision, type, delta, task, tags, batch_id)
select bucket, environment_id, id, told.revision,
       case told.revision when 1 then 'created' when 2 then 'executing' else 'final' end,
       case told.revision when 1 then '{"set":{"status":"QUEUED","tags":["everyone"]}}'
            else '{"set":{"status":"COMPLETED"}}' end, task, tags, batch_id
  from runwire.runs r cross join generate_series(1, 3) as told (revision)
 where r.status = 'COMPLETED';
insert into runwire.streams (environment_id, run_id, key, bucket, next_seq)
select environment_id, id, 'log', bucket, 1 from runwire.runs where environment_id = 1;
insert into runwire.streams (environment_id, run_id, key, bucket, next_seq)
select 1, 'run_executing' || lpad('1', 20, '0'), 'long', current_date, %(runs)s;
insert into runwire.stream_chunks (bucket, stream_id, seq, execution, attempt, body)
select s.bucket, s.id, n - 1, 1, 1, '"chunk number ' || n || '"'
  from runwire.streams s cross join generate_series(1, %(runs)s) n
 where s.key = 'long';
insert into runwire.stream_chunks (bucket, stream_id, seq, execution, attempt, body)
select bucket, id, 0, 1, 1, '"chunk"' from runwire.streams where key = 'log';
insert into runwire.idempotency_keys (environment_id, task, key, run_id, expires_at)
select environment_id, task, id, id, now() + interval '1 day' from runwire.runs where status = 'COMPLETED';
insert into runwire.request_keys (environment_id, operation, key, target_id)
select environment_id, 'trigger', id, id from runwire.runs where status = 'COMPLETED';
insert into runwire.debounce_keys (environment_id, task, key, run_id, expires_at)
select environment_id, task, id, id, now() + interval '1 day' from runwire.runs where status = 'DELAYED';
insert into runwire.waitpoints (environment_id, id, tags, timeout_at, idempotency_key, created_at)
select e.id, 'waitpoint_' || lpad(n::text, 20, '0'), '{}',
       now() + case e.id when 1 then interval '1 day' else interval '1 hour' end + n * interval '1 second',
       'key-' || n, now() + n * interval '1 millisecond'
  from (values (1), (2)) as e (id), generate_series(1, %(runs)s / 4) n;
insert into runwire.waits (environment_id, run_id, generation, branch, ordinal, kind, target, open, waitpoint_id,
                           due_at)
select environment_id, id, 0, 'main', 0, 'time', 'time', true, null, wake_at
  from runwire.runs where status = 'WAITING';
insert into runwire.checkpoints (environment_id, run_id, generation, marks)
select environment_id, id, 0, '{}' from runwire.runs where status = 'WAITING';
insert into runwire.wait_targets (environment_id, target_id, run_id)
select 1, 'waitpoint_' || lpad(n::text, 20, '0'), 'run_waiting' || lpad(n::text, 20, '0')
  from generate_series(1, %(runs)s / 4) n;
insert into runwire.wakes (environment_id, target_id)
select 2, 'run_finished' || lpad(n::text, 20, '0') from generate_series(1, %(runs)s / 4) n;
insert into runwire.schedules (environment_id, id, type, task, cron, deduplication_key, next_at, due_at,
                               created_at, updated_at)
select 1, 'sched_' || lpad(n::text, 20, '0'), 'IMPERATIVE', 'task-1', '* * * * *', n,
       now() + interval '1 day' + n * interval '1 second', now() + interval '1 day' + n * interval '1 second',
       now(), now()
  from generate_series(1, %(runs)s / 4) n;
insert into runwire.writers (environment_id, target, writer_id, last_no)
select 1, 'chunks', 'writer-' || n, 1 from generate_series(1, %(runs)s / 4) n;
insert into runwire.used_tokens (environment_id, jti, expires_at)
select 1, 'token-' || n, now() + interval '1 hour' from generate_series(1, %(runs)s) n;
insert into runwire.api_keys (environment_id, hash, hint)
select 1, sha256(n::text::bytea), 'tr_dev_sk_' from generate_series(1, %(runs)s / 10) n;
insert into runwire.cancellations (environment_id, run_id)
select 2, 'run_finished' || lpad(n::text, 20, '0') from generate_series(1, %(runs)s / 4) n;
