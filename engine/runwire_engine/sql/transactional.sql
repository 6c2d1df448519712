-- begin --
-- The one time of a trigger, the environment of this name, its tasks, and whether what happens
-- today has a partition.
select clock.now, e.id as environment_id, t.id, t.queue, t.max_duration, t.ttl,
       to_regclass('runwire.run_events_' || to_char(clock.now at time zone 'UTC', 'YYYYMMDD'))
           is not null as has_partitions
  from (select runwire.now_v1() as now) as clock
  left join runwire.environments e on e.name = %(environment)s
  left join runwire.tasks t on t.environment_id = e.id and t.id = any(%(tasks)s::text[]);
