-- announce --
-- Writes down tasks as their code says.
insert into runwire.tasks
       (environment_id, id, queue, retry, max_duration, payload_schema, description, updated_at)
select %(environment_id)s, t.id, t.queue, t.retry, t.max_duration, t.payload_schema,
       t.description, runwire.now_v1()
  from unnest(%(ids)s::text[], %(queues)s::text[], %(retries)s::text[],
              %(max_durations)s::double precision[], %(payload_schemas)s::text[],
              %(descriptions)s::text[])
       as t (id, queue, retry, max_duration, payload_schema, description)
 order by t.id
    on conflict (environment_id, id) do update
   set queue = excluded.queue, retry = excluded.retry, max_duration = excluded.max_duration,
       payload_schema = excluded.payload_schema, description = excluded.description,
       updated_at = excluded.updated_at;

-- free_queues --
-- Takes the limit off queues that no other task may have named one for.
delete from runwire.queue_groups g
 where g.environment_id = %(environment_id)s and g.queue = any(%(queues)s::text[])
   and not exists (select from runwire.tasks t
                    where t.environment_id = g.environment_id and t.queue = g.queue
                      and t.id <> all(%(tasks)s::text[]));

-- known --
-- Whether a task was announced.
select id from runwire.tasks where environment_id = %(environment_id)s and id = %(id)s;

-- list --
-- Every announced task.
select environment_id, id, queue, retry, max_duration, payload_schema, description, updated_at
  from runwire.tasks
 where environment_id = %(environment_id)s
 order by id;
