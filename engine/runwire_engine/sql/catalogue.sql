-- announce --
-- Writes down tasks as their code says.
insert into runwire.tasks
       (environment_id, id, queue, retry, max_duration, ttl, payload_schema, description,
        updated_at)
select %(environment_id)s, t.id, t.queue, t.retry, t.max_duration, t.ttl, t.payload_schema,
       t.description, runwire.now_v1()
  from unnest(%(ids)s::text[], %(queues)s::text[], %(retries)s::text[],
              %(max_durations)s::double precision[], %(ttls)s::double precision[],
              %(payload_schemas)s::text[], %(descriptions)s::text[])
       as t (id, queue, retry, max_duration, ttl, payload_schema, description)
 order by t.id
    on conflict (environment_id, id) do update
   set queue = excluded.queue, retry = excluded.retry, max_duration = excluded.max_duration,
       ttl = excluded.ttl, payload_schema = excluded.payload_schema, description = excluded.description,
       updated_at = excluded.updated_at;

-- known --
-- Whether a task was announced.
select id from runwire.tasks where environment_id = %(environment_id)s and id = %(id)s;

-- list --
-- Every announced task.
select environment_id, id, queue, retry, max_duration, ttl, payload_schema, description,
       updated_at
  from runwire.tasks
 where environment_id = %(environment_id)s
 order by id;
