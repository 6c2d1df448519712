-- look --
-- In how many seconds the next tick is due, and whether schedules wait for a worker. Both ask for
-- the first in order: that is read from the index, whatever the planner believes of the table.
select extract(epoch from (
           select due_at from runwire.schedules
            where due_at is not null and suspended_at is null
            order by due_at limit 1) - runwire.now_v1())::double precision as due_in,
       (select suspended_at from runwire.schedules
         where suspended_at is not null
         order by suspended_at limit 1) is not null as are_suspended;

-- due --
-- Keeps schedules whose tick is due, skipping what another server is at; `declared`: a worker that
-- lives declares it, or nobody needs to.
with clock as materialized (
    select runwire.now_v1() as now
)
select s.*, clock.now,
       s.type = 'IMPERATIVE' or exists (
           select from runwire.workers w
            where w.environment_id = s.environment_id and w.stopped_at is null
              and w.expires_at > clock.now and s.task = any(w.declares)) as declared
  from runwire.schedules s, clock
 where s.due_at is not null and s.suspended_at is null and s.due_at <= (select now from clock)
 order by s.due_at
 limit %(limit)s
   for no key update of s skip locked;

-- ticked --
-- Which of these ticks have their run: none, but where somebody set a schedule back.
select tick.schedule_id
  from unnest(%(environment_ids)s::integer[], %(schedule_ids)s::text[], %(ats)s::timestamptz[])
       as tick (environment_id, schedule_id, at)
 where exists (select from runwire.runs r
                where r.environment_id = tick.environment_id
                  and r.schedule_id = tick.schedule_id and r.scheduled_at = tick.at);

-- link --
-- Says of runs that were made in this transaction which ticks they came of.
update runwire.runs r
   set schedule_id = tick.schedule_id, scheduled_at = tick.at
  from unnest(%(run_ids)s::text[], %(schedule_ids)s::text[], %(ats)s::timestamptz[])
       as tick (run_id, schedule_id, at)
 where r.environment_id = %(environment_id)s and r.id = any(%(run_ids)s::text[])
   and r.id = tick.run_id;

-- advance --
-- Moves schedules that are kept to their next ticks.
update runwire.schedules s
   set next_at = moved.next_at, due_at = moved.due_at,
       last_at = coalesce(moved.last_at, s.last_at), error = moved.error,
       suspended_at = case when moved.suspends then %(now)s::timestamptz end
  from unnest(%(environment_ids)s::integer[], %(ids)s::text[], %(next_ats)s::timestamptz[],
              %(due_ats)s::timestamptz[], %(last_ats)s::timestamptz[], %(errors)s::text[],
              %(suspend)s::boolean[])
       as moved (environment_id, id, next_at, due_at, last_at, error, suspends)
 where s.environment_id = moved.environment_id and s.id = moved.id
   and s.id = any(%(ids)s::text[]);

-- put_off --
-- Has a schedule whose tick could not be dealt with tried again later.
update runwire.schedules
   set due_at = runwire.now_v1() + make_interval(secs => %(seconds)s), error = %(error)s
 where environment_id = %(environment_id)s and id = %(id)s and due_at is not null;

-- resume --
-- Lets schedules go on that a living worker declares again.
update runwire.schedules s
   set suspended_at = null
 where s.suspended_at is not null
   and exists (select from runwire.workers w
                where w.environment_id = s.environment_id and w.stopped_at is null
                  and w.expires_at > runwire.now_v1() and s.task = any(w.declares));

-- forget --
-- Deletes declared schedules that no worker has declared for long.
delete from runwire.schedules
 where ctid = any(array(
       select ctid from runwire.schedules
        where suspended_at < runwire.now_v1() - %(kept)s::interval
          for update skip locked));
