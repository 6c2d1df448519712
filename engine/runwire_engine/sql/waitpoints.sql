-- free_key --
-- Takes an idempotency key that has expired from its waitpoint.
update runwire.waitpoints
   set idempotency_key = null, idempotency_expires_at = null
 where environment_id = %(environment_id)s and idempotency_key = %(key)s
   and idempotency_expires_at <= runwire.now_v1();

-- create --
-- Makes a waitpoint, unless there is one of its id or its idempotency key.
insert into runwire.waitpoints
       (environment_id, id, tags, timeout_at, idempotency_key, idempotency_expires_at, created_at)
select %(environment_id)s, %(id)s, %(tags)s::text[],
       coalesce(%(timeout_at)s::timestamptz,
                clock.now + make_interval(secs => %(timeout)s::double precision)),
       %(key)s::text,
       case when %(key)s::text is not null
            then clock.now + make_interval(secs => %(key_ttl)s::double precision) end,
       clock.now
  from (select runwire.now_v1() as now) as clock
    on conflict do nothing
returning *;

-- of_key --
-- The waitpoint of an idempotency key.
select * from runwire.waitpoints
 where environment_id = %(environment_id)s and idempotency_key = %(key)s;

-- retrieve --
-- Waitpoints by id.
select * from runwire.waitpoints
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[]);

-- complete --
-- Completes a pending waitpoint whose time is not over, and notes that its waiters are to be looked at.
with clock as materialized (
    select runwire.now_v1() as now
), done as (
    update runwire.waitpoints p
       set ok = true, output = %(output)s, output_type = %(output_type)s, completed_at = clock.now
      from clock
     where p.environment_id = %(environment_id)s and p.id = %(id)s and p.completed_at is null
       and (p.timeout_at is null or p.timeout_at > clock.now)
    returning p.*
), noted as (
    insert into runwire.wakes (environment_id, target_id, created_at)
    select environment_id, id, completed_at from done
        on conflict do nothing
)
select * from done;

-- time_out --
-- Completes waitpoints whose time is over, some at a time, as not ok.
with clock as materialized (
    select runwire.now_v1() as now
), due as materialized (
    select found.environment_id, found.id
      from runwire.environments e
     cross join lateral (
          select p.environment_id, p.id, p.timeout_at
            from runwire.waitpoints p
           where p.environment_id = e.id and p.completed_at is null
             and p.timeout_at <= (select now from clock)
           order by p.timeout_at
           limit %(limit)s
             for no key update skip locked) as found
     where %(environment_id)s::integer is null or e.id = %(environment_id)s
     order by found.timeout_at
     limit %(limit)s
), done as (
    update runwire.waitpoints p
       set ok = false, error = %(error)s, completed_at = clock.now
      from clock, due
     where p.environment_id = due.environment_id and p.id = due.id
       and p.id = any(array(select id from due))
    returning p.environment_id, p.id, p.completed_at
), noted as (
    insert into runwire.wakes (environment_id, target_id, created_at)
    select environment_id, id, completed_at from done
        on conflict do nothing
)
select environment_id, id from done;

-- next_due --
-- How long until the next waitpoint times out.
select extract(epoch from p.timeout_at - runwire.now_v1())::double precision as seconds
  from runwire.waitpoints p
 where p.completed_at is null and p.timeout_at is not null
   and p.environment_id = %(environment_id)s
 order by p.timeout_at
 limit 1;

-- list --
-- A page of waitpoints, newest first (or oldest first, before a cursor).
select *
  from runwire.waitpoints p
 where p.environment_id = %(environment_id)s
   and (%(key)s::text is null or p.idempotency_key = %(key)s)
   and (%(tags)s::text[] is null or p.tags && %(tags)s::text[])
   and (%(statuses)s::text[] is null
        or case when p.ok then 'COMPLETED' when p.ok = false then 'TIMED_OUT' else 'WAITING' end
           = any(%(statuses)s::text[]))
   and (%(created_from)s::timestamptz is null or p.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or p.created_at < %(created_to)s)
   and (%(after_time)s::timestamptz is null
        or (p.created_at, p.id) < (%(after_time)s, %(after_id)s::text))
   and (%(before_time)s::timestamptz is null
        or (p.created_at, p.id) > (%(before_time)s, %(before_id)s::text))
 order by case when %(before_time)s::timestamptz is null then p.created_at end desc,
          case when %(before_time)s::timestamptz is null then p.id end desc,
          p.created_at, p.id
 limit %(limit)s;

-- delete_old --
-- Deletes waitpoints that were completed long ago and that no run is at.
delete from runwire.waitpoints
 where ctid = any(array(
       select p.ctid
         from runwire.waitpoints p
        where p.completed_at < (select runwire.now_v1()) - %(kept)s::interval
          and coalesce(p.idempotency_expires_at <= runwire.now_v1(), true)
          and not exists (select from runwire.wait_targets t
                           where t.environment_id = p.environment_id and t.target_id = p.id)
        order by p.completed_at limit %(limit)s for update skip locked));
