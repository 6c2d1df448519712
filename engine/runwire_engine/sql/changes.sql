-- begin --
-- Opens a transaction for the read below.
begin;

-- settle --
-- Makes the planner use the indexes on txid, and plan once for every position. Everybody waits for
-- this read: it must give up soon.
select set_config('enable_seqscan', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('statement_timeout', '2s', true);

-- commit --
-- Ends it.
commit;

-- epoch --
-- The name of this database's history.
select runwire.epoch_v2() as epoch;

-- place --
-- Which history this is, which life of Postgres, and how far its log is on disk. The life changes
-- when Postgres starts, and when it recovers from the crash of a process without starting anew
-- (which resets its statistics).
select runwire.epoch_v2() as epoch, g.generation,
       left(md5(concat_ws('/', pg_postmaster_start_time(), a.stats_reset)), 8) as recovery,
       case when not pg_is_in_recovery() then pg_current_wal_flush_lsn() - '0/0' end as flushed,
       (select count(*) from runwire.closed_days) as closed_days,
       (select array_agg(bucket) from runwire.closed_days where emptied_at is not null) as emptied
  from pg_stat_archiver a, runwire.generations g;

-- rotate --
-- Begins another history, unless somebody has.
update runwire.generations
   set generation = gen_random_uuid()
 where generation = %(generation)s::uuid;

-- begin_history --
-- Begins another history in any case, and returns its name.
update runwire.generations set generation = gen_random_uuid();

-- adopt_events --
-- Makes events old that came from another database with transaction ids not yet given out in this
-- one; a few at once. No event that was written here is visible before its id was.
update runwire.run_events e
   set txid = '3'
  from (select environment_id, run_id, revision, bucket
          from runwire.run_events
         where txid >= pg_snapshot_xmax(pg_current_snapshot())
         limit %(limit)s) as foreign_event
 where e.environment_id = foreign_event.environment_id and e.run_id = foreign_event.run_id
   and e.revision = foreign_event.revision and e.bucket = foreign_event.bucket;

-- is_cut_off --
-- Whether events that are not visible in a snapshot may have been dropped.
select exists (select from runwire.closed_days
                where epoch = runwire.epoch_v2()
                  and last_txid >= pg_snapshot_xmin(%(snapshot)s::pg_snapshot)) as is_cut_off;

-- now --
-- Where a tail begins.
select pg_current_snapshot()::text as snapshot, pg_is_in_recovery() as is_standby;

-- tail --
-- Every event of the transactions that became visible since a snapshot, and the new snapshot: a row
-- without an event when there are none.
select now.snapshot, now.is_standby, e.environment_id, e.run_id, e.revision, e.type, e.delta,
       e.created_at, e.task, e.tags, e.batch_id
  from (select pg_current_snapshot()::text as snapshot, pg_is_in_recovery() as is_standby) as now
  left join lateral (
      select *
        from (select environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id
                from runwire.run_events
               where txid >= pg_snapshot_xmax(%(snapshot)s::pg_snapshot)
              union all
              select environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id
                from runwire.run_events
               where txid = any (array(select pg_snapshot_xip(%(snapshot)s::pg_snapshot)))
             ) as became_visible
       order by environment_id, run_id, revision
       limit %(limit)s
  ) as e on true;
