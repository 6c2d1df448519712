-- What is kept for how long: days of history, and the runs themselves.

-- take_time --
-- Gives this transaction more time for a statement than those of the hot path have.
set local statement_timeout = '60s';

-- old_days --
-- Days that are old enough to be closed, and are not, oldest first.
-- Partitions first: read together with the condition, a plan may ask any table's name for a date.
with days as materialized (
    select right(c.relname, 8) as name
      from pg_inherits i
      join pg_class c on c.oid = i.inhrelid
     where i.inhparent in ('runwire.run_events'::regclass, 'runwire.stream_chunks'::regclass)
)
select day
  from (select distinct to_date(name, 'YYYYMMDD') as day from days) as each_day
 where day < ((runwire.now_v1() - %(history)s::interval) at time zone 'UTC')::date
   and not exists (select from runwire.closed_days d where d.bucket = day)
 order by day;

-- keeper --
-- A run that keeps a day's history, if there is one.
select environment_id, run_id
  from runwire.keeper_of_day_v1(%(day)s::date, runwire.now_v1() - %(history)s::interval);

-- still_keeps --
-- Whether a run that kept its day does so still.
select exists (select from runwire.runs
                where environment_id = %(environment_id)s and id = %(run_id)s
                  and (finished_at is null
                       or finished_at > runwire.now_v1() - %(history)s::interval)) as keeps;

-- close_day --
-- Closes a day, unless a run keeps it.
select runwire.close_day_v1(%(day)s::date, runwire.now_v1() - %(history)s::interval) as is_closed;

-- leftovers --
-- The partitions that there still are of closed days, and how far each is on its way.
select c.relname as leaf, log.parent, i.inhrelid is not null as is_attached,
       coalesce(i.inhdetachpending, false) as is_pending
  from runwire.closed_days d
 cross join (values ('run_events'), ('stream_chunks')) as log (parent)
  join pg_class c on c.relnamespace = 'runwire'::regnamespace
   and c.relname = log.parent || '_' || to_char(d.bucket, 'YYYYMMDD')
  left join pg_inherits i on i.inhrelid = c.oid
 where d.dropped_at is null
 order by d.bucket, log.parent;

-- detach --
-- Takes a partition out of its log without keeping anybody waiting.
alter table runwire.{parent} detach partition runwire.{leaf} concurrently;

-- finish_detach --
-- Goes on where somebody who detached a partition was interrupted.
alter table runwire.{parent} detach partition runwire.{leaf} finalize;

-- drop --
-- Drops a partition that was taken out: nobody can reach it any more.
drop table if exists runwire.{leaf};

-- note_dropped --
-- Notes the days of which nothing is left in the logs.
update runwire.closed_days d
   set dropped_at = runwire.now_v1()
 where d.dropped_at is null
   and to_regclass('runwire.run_events_' || to_char(d.bucket, 'YYYYMMDD')) is null
   and to_regclass('runwire.stream_chunks_' || to_char(d.bucket, 'YYYYMMDD')) is null;

-- days_to_empty --
-- Days without history whose runs are to be deleted, oldest first.
select bucket as day
  from runwire.closed_days
 where dropped_at is not null and emptied_at is null
   and bucket < ((runwire.now_v1() - %(runs)s::interval) at time zone 'UTC')::date
 order by bucket;

-- expired_runs --
-- Runs of a day that may be deleted, kept for this transaction. One that stands in a younger batch
-- stays as long as that, so that a batch lives and dies whole.
select r.environment_id, r.id, r.tags, r.created_at
  from runwire.runs r
 where r.ctid = any(array(
       select found.ctid
         from runwire.environments e
        cross join lateral (
             select o.ctid
               from runwire.runs o
              where o.environment_id = e.id
                and o.created_at >= %(day)s::date::timestamp at time zone 'UTC'
                and o.created_at < (%(day)s::date + 1)::timestamp at time zone 'UTC'
                and o.finished_at <= runwire.now_v1() - %(runs)s::interval
                and not exists (
                    select from runwire.batch_items i
                      join runwire.batches b
                        on b.environment_id = i.environment_id and b.id = i.batch_id
                     where i.environment_id = o.environment_id and i.run_id = o.id
                       and b.created_at > runwire.now_v1() - %(runs)s::interval)
              limit %(limit)s) as found
        limit %(limit)s))
   for update skip locked;

-- delete_streams --
-- Deletes what is known of the streams of runs.
delete from runwire.streams
 where environment_id = %(environment_id)s and run_id = any(%(ids)s::text[]);

-- delete_metadata --
-- Deletes the metadata of runs.
delete from runwire.run_metadata
 where environment_id = %(environment_id)s and run_id = any(%(ids)s::text[]);

-- delete_tags --
-- Deletes the tags of runs, by their key.
delete from runwire.run_tags t
 using unnest(%(tags)s::text[], %(tagged_at)s::timestamptz[], %(tagged)s::text[])
       as gone (tag, created_at, run_id)
 where t.environment_id = %(environment_id)s and t.tag = gone.tag
   and t.created_at = gone.created_at and t.run_id = gone.run_id
   and t.tag = any(%(tags)s::text[]);

-- delete_batch_items --
-- Takes runs out of their batches.
delete from runwire.batch_items
 where environment_id = %(environment_id)s and run_id = any(%(ids)s::text[]);

-- delete_idempotency_keys --
-- Deletes the keys that would answer with runs that are gone.
delete from runwire.idempotency_keys
 where environment_id = %(environment_id)s and run_id = any(%(ids)s::text[]);

-- delete_runs --
-- Deletes runs.
delete from runwire.runs
 where environment_id = %(environment_id)s and id = any(%(ids)s::text[]);

-- delete_batches --
-- Deletes old batches that have no runs any more.
delete from runwire.batches
 where ctid = any(array(
       select b.ctid from runwire.batches b
        where b.created_at <= runwire.now_v1() - %(runs)s::interval
          and not exists (select from runwire.batch_items i
                           where i.environment_id = b.environment_id and i.batch_id = b.id)
        limit %(limit)s for update skip locked));

-- note_emptied --
-- Notes that a day has no runs any more.
update runwire.closed_days d
   set emptied_at = runwire.now_v1()
 where d.bucket = %(day)s::date and d.emptied_at is null
   and not exists (
       select from runwire.environments e
        cross join lateral (
             select from runwire.runs r
              where r.environment_id = e.id
                and r.created_at >= %(day)s::date::timestamp at time zone 'UTC'
                and r.created_at < (%(day)s::date + 1)::timestamp at time zone 'UTC'
              limit 1) as left_over);
