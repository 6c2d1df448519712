-- clock --
-- The database's time.
select runwire.now_v1() as now;

-- lock_by_key --
-- Keeps the schedule with a deduplication key for a change; tells the time.
select s.*, runwire.now_v1() as now
  from runwire.schedules s
 where s.environment_id = %(environment_id)s and s.type = %(type)s
   and s.deduplication_key = %(deduplication_key)s
   for no key update;

-- lock --
-- Keeps a schedule for a change; tells the time.
select s.*, runwire.now_v1() as now
  from runwire.schedules s
 where s.environment_id = %(environment_id)s and s.id = %(id)s
   for no key update;

-- insert --
-- Makes a schedule, unless somebody was faster.
insert into runwire.schedules
       (environment_id, id, type, task, cron, timezone, due_window, missed, deduplication_key,
        external_id, active, next_at, due_at, created_at, updated_at)
values (%(environment_id)s, %(id)s, %(type)s, %(task)s, %(cron)s, %(timezone)s, %(due_window)s,
        %(missed)s, %(deduplication_key)s, %(external_id)s, true, %(next_at)s, %(due_at)s,
        %(now)s, %(now)s)
    on conflict do nothing
returning *;

-- change --
-- Writes a schedule that is locked as it shall be now.
update runwire.schedules
   set task = %(task)s, cron = %(cron)s, timezone = %(timezone)s, due_window = %(due_window)s,
       missed = %(missed)s, external_id = %(external_id)s, active = %(active)s,
       next_at = %(next_at)s, due_at = %(due_at)s, error = %(error)s,
       suspended_at = case when %(active)s then suspended_at end, updated_at = %(now)s
 where environment_id = %(environment_id)s and id = %(id)s
returning *;

-- retrieve --
-- One schedule.
select * from runwire.schedules where environment_id = %(environment_id)s and id = %(id)s;

-- list --
-- A page of schedules, oldest first.
select * from runwire.schedules
 where environment_id = %(environment_id)s
 order by created_at, id
 limit %(limit)s offset %(offset)s;

-- count --
-- How many schedules there are.
select count(*) as count from runwire.schedules where environment_id = %(environment_id)s;

-- delete --
-- Deletes a schedule that was made by a call; its runs stay.
delete from runwire.schedules
 where environment_id = %(environment_id)s and id = %(id)s and type = 'IMPERATIVE'
returning id;

-- undeclare --
-- Deletes what tasks declared that declare nothing any more.
delete from runwire.schedules
 where environment_id = %(environment_id)s and type = 'DECLARATIVE'
   and deduplication_key = any(%(tasks)s::text[]);
