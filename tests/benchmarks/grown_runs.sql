-- Finished runs number %(first)s to %(last)s, each with two tags and the event of its end.
insert into runwire.runs
       (environment_id, id, bucket, task, status, execution, attempt, queue, sort_at, payload, output,
        tags, created_at, updated_at, queued_at, finished_at)
select %(environment)s, 'run_' || lpad(n::text, 24, '0'), current_date, 'noop', 'COMPLETED', 1, 1,
       'task/noop', at, '{"number":1}', '{"text":"done"}', array['everyone', 'user:' || n % 10000],
       at, at, at, at
  from generate_series(%(first)s::bigint, %(last)s::bigint) n
 cross join lateral (select now() - interval '1 minute' - n * interval '1 millisecond' as at) as at;
insert into runwire.run_tags (environment_id, tag, created_at, run_id)
select environment_id, unnest(tags), created_at, id
  from runwire.runs
 where id >= 'run_' || lpad(%(first)s::text, 24, '0') and id <= 'run_' || lpad(%(last)s::text, 24, '0');
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, task, tags)
select bucket, environment_id, id, 3, 'final', '{"set":{"status":"COMPLETED"}}', task, tags
  from runwire.runs
 where id >= 'run_' || lpad(%(first)s::text, 24, '0') and id <= 'run_' || lpad(%(last)s::text, 24, '0');
