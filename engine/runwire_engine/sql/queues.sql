-- A statement keeps the plan it got when its tables were empty: runs are reached by key, or through
-- an index of ready or executing ones.

-- declare --
-- Notes queues with the limits that code gives them now; returns those whose limit is another one. No
-- limit takes one off only where no other task than the given ones may have named it.
insert into runwire.queues as q (environment_id, name, base_limit)
select %(environment_id)s, said.name, said.base_limit
  from unnest(%(names)s::text[], %(limits)s::integer[]) as said (name, base_limit)
       -- One that says nothing new is not even locked: triggers say the same again and again.
 where not exists (select from runwire.queues known
                    where known.environment_id = %(environment_id)s and known.name = said.name
                      and known.base_limit is not distinct from said.base_limit)
 order by said.name
    on conflict (environment_id, name) do update
   set base_limit = excluded.base_limit, updated_at = runwire.now_v1()
 where q.base_limit is distinct from excluded.base_limit
   and (excluded.base_limit is not null
        or not exists (select from runwire.tasks t
                        where t.environment_id = q.environment_id and t.queue = q.name
                          and t.id <> all(%(tasks)s::text[])))
returning q.name;

-- mention --
-- Notes queues that runs are sent to; what is known of one stays. One that an open transaction is
-- about to note is left to that.
insert into runwire.queues (environment_id, name)
select %(environment_id)s, fresh.name
  from (select name
          from unnest(%(names)s::text[]) as mentioned (name)
         where not exists (select from runwire.queues known
                            where known.environment_id = %(environment_id)s
                              and known.name = mentioned.name)
         order by name) as fresh
 where pg_try_advisory_xact_lock(hashtextextended(concat_ws(' ', 'runwire.queues',
           %(environment_id)s::text, fresh.name), 0))
    on conflict do nothing;

-- apply --
-- Gives queues the groups that their limits and pauses ask for, or takes them away; returns those
-- whose ready runs may have to go another way now.
with wanted as materialized (
    select q.name, q.paused, coalesce(q.override_limit, q.base_limit) as concurrency_limit
      from runwire.queues q
     where q.environment_id = %(environment_id)s and q.name = any(%(names)s::text[])
), freed as (
    delete from runwire.queue_groups g
     using wanted w
     where g.environment_id = %(environment_id)s and g.queue = w.name
       and w.concurrency_limit is null and not w.paused
    returning g.queue
), base as (
    insert into runwire.queue_groups as g
           (environment_id, queue, concurrency_key, concurrency_limit, paused)
    select %(environment_id)s, w.name, '', coalesce(w.concurrency_limit, 2147483647), w.paused
      from wanted w
     where (w.concurrency_limit is not null or w.paused)
       and not exists (select from runwire.queue_groups known
                        where known.environment_id = %(environment_id)s
                          and known.queue = w.name and known.concurrency_key = ''
                          and known.concurrency_limit = coalesce(w.concurrency_limit, 2147483647)
                          and known.paused = w.paused)
     order by w.name
        on conflict (environment_id, queue, concurrency_key) do update
       set concurrency_limit = excluded.concurrency_limit, paused = excluded.paused
     where g.concurrency_limit <> excluded.concurrency_limit or g.paused <> excluded.paused
    returning g.queue
), keyed as (
    update runwire.queue_groups g
       set concurrency_limit = coalesce(w.concurrency_limit, 2147483647)
      from wanted w
     where g.environment_id = %(environment_id)s and g.queue = w.name
       and g.concurrency_key <> ''
       and (w.concurrency_limit is not null or w.paused)
       and g.concurrency_limit <> coalesce(w.concurrency_limit, 2147483647)
)
select queue from freed union select queue from base;

-- pause --
-- Pauses a queue, or has it go on.
update runwire.queues
   set paused = %(paused)s, updated_at = runwire.now_v1()
 where environment_id = %(environment_id)s and name = %(name)s
returning name;

-- override --
-- Puts another limit in place of what code says; null takes it back, where there is one.
update runwire.queues
   set override_limit = %(limit)s::integer,
       overridden_at = case when %(limit)s::integer is not null then runwire.now_v1() end,
       updated_at = runwire.now_v1()
 where environment_id = %(environment_id)s and name = %(name)s
   and (%(limit)s::integer is not null or override_limit is not null)
returning name;

-- name_of --
-- The name of a queue by its id.
select name from runwire.queues where environment_id = %(environment_id)s and id = %(id)s;

-- count --
-- How many queues there are.
select count(*) as queues from runwire.queues where environment_id = %(environment_id)s;

-- page --
-- Queues by name, with how much executes and waits in each.
with page as materialized (
    select *
      from runwire.queues
     where environment_id = %(environment_id)s
     order by name
     limit %(limit)s offset %(offset)s
), unlimited as materialized (
    select r.queue, count(*) as queued
      from runwire.runs r
     where r.environment_id = %(environment_id)s and r.status = 'QUEUED' and not r.limited
       and r.queue = any(array(select name from page))
     group by r.queue
)
select page.id, page.name, page.base_limit, page.override_limit, page.overridden_at, page.paused,
       executing.running, grouped.queued + coalesce(unlimited.queued, 0) as queued
  from page
  left join unlimited on unlimited.queue = page.name
 cross join lateral (
       select count(*) as running
         from runwire.runs r
        where r.environment_id = %(environment_id)s and r.queue = page.name
          and r.status in ('DEQUEUED', 'EXECUTING')) as executing
 cross join lateral (
       select count(*) as queued
         from runwire.runs r
        where r.environment_id = %(environment_id)s and r.queue = page.name
          and r.status = 'QUEUED' and r.limited) as grouped
 order by page.name;

-- retrieve --
-- One queue, with how much executes and waits in it.
select q.id, q.name, q.base_limit, q.override_limit, q.overridden_at, q.paused,
       (select count(*)
          from runwire.runs r
         where r.environment_id = q.environment_id and r.queue = q.name
           and r.status in ('DEQUEUED', 'EXECUTING')) as running,
       (select count(*)
          from runwire.runs r
         where r.environment_id = q.environment_id and r.queue = q.name
           and r.status = 'QUEUED' and r.limited)
       + (select count(*)
            from runwire.runs r
           where r.environment_id = q.environment_id and r.queue = q.name
             and r.status = 'QUEUED' and not r.limited) as queued
  from runwire.queues q
 where q.environment_id = %(environment_id)s and q.name = %(name)s;

-- match --
-- Puts right whether ready runs go through groups, after their queue got or lost its limit: some of
-- certain queues, or of all.
with entering as materialized (
    select r.environment_id, r.id
      from runwire.runs r
     where r.status = 'QUEUED' and not r.limited
       and (%(environment_id)s::integer is null
            or r.environment_id = %(environment_id)s and r.queue = any(%(queues)s::text[]))
       and exists (select from runwire.queue_groups g
                    where g.environment_id = r.environment_id and g.queue = r.queue
                      and g.concurrency_key = '')
     limit %(limit)s
       for no key update of r skip locked
), leaving as materialized (
    select r.environment_id, r.id
      from runwire.runs r
     where r.status = 'QUEUED' and r.limited
       and (%(environment_id)s::integer is null
            or r.environment_id = %(environment_id)s and r.queue = any(%(queues)s::text[]))
       and not exists (select from runwire.queue_groups g
                        where g.environment_id = r.environment_id and g.queue = r.queue
                          and g.concurrency_key = '')
     limit %(limit)s
       for no key update of r skip locked
), wrong as materialized (
    select * from entering union all select * from leaving
), changed as (
    update runwire.runs r
       set limited = not r.limited
     where r.environment_id = any(array(select environment_id from wrong))
       and r.id = any(array(select id from wrong))
    returning r.environment_id, r.queue, r.concurrency_key, r.limited
), grouped as (
    insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit)
    select distinct c.environment_id, c.queue, c.concurrency_key, base.concurrency_limit
      from changed c
      join runwire.queue_groups base
        on base.environment_id = c.environment_id and base.queue = c.queue
       and base.concurrency_key = ''
     where c.limited and c.concurrency_key <> ''
     order by 1, 2, 3
        on conflict do nothing
)
select environment_id, queue, count(*) as runs from changed group by 1, 2;

-- make_groups --
-- Makes groups that runs wait in and nobody made, of queues with a limit.
insert into runwire.queue_groups (environment_id, queue, concurrency_key, concurrency_limit)
select distinct %(environment_id)s::integer, g.queue, g.concurrency_key, base.concurrency_limit
  from unnest(%(queues)s::text[], %(keys)s::text[]) as g (queue, concurrency_key)
  join runwire.queue_groups base
    on base.environment_id = %(environment_id)s and base.queue = g.queue
   and base.concurrency_key = ''
 where g.concurrency_key <> ''
 order by 2, 3
    on conflict do nothing;
