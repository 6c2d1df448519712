-- Only for databases of tests (runwire_realtime.testing), where time can be moved forward.

-- make_clock --
-- Holds by how many microseconds the clock is ahead. A sequence: every session sees it move at once.
create sequence runwire.test_clock minvalue 0 start 0;

-- use_clock --
-- Has this database's time be ahead of the real one.
create or replace function runwire.now_v1() returns timestamptz
language sql volatile parallel safe
as $$
    select coalesce(nullif(current_setting('runwire.now', true), '')::timestamptz,
                    clock_timestamp()
                    + coalesce(pg_sequence_last_value('runwire.test_clock'::regclass), 0)
                      * interval '1 microsecond')
$$;

-- now --
-- The time of this database.
select runwire.now_v1() as now;

-- make_partitions --
-- Makes the partitions of a day that time will be moved to, and of the next one.
select runwire.make_partitions_v2(%(day)s::date, %(day)s::date + 1);

-- advance --
-- Moves time forward to a moment; never back.
select setval('runwire.test_clock',
              greatest((extract(epoch from %(to)s::timestamptz - clock_timestamp())
                        * 1000000)::bigint,
                       coalesce(pg_sequence_last_value('runwire.test_clock'::regclass), 0)));

-- situation --
-- Whether anything executes or is about to, and when the next wait is over by time.
select exists (select from runwire.runs where status in ('QUEUED', 'DEQUEUED', 'EXECUTING'))
       or exists (select from runwire.wakes) as is_busy,
       least((select min(delayed_until) from runwire.runs where status = 'DELAYED'),
             (select min(wake_at) from runwire.runs where status = 'WAITING'),
             (select min(p.timeout_at) from runwire.waitpoints p
               where p.ok is null
                 and exists (select from runwire.wait_targets t
                              where t.environment_id = p.environment_id
                                and t.target_id = p.id))) as due_at,
       (select status from runwire.runs
         where environment_id = %(environment_id)s and id = %(run_id)s) as status,
       runwire.now_v1() as now;

-- children --
-- The runs that a run triggered, in order.
select id from runwire.runs
 where environment_id = %(environment_id)s and parent_id = %(run_id)s
 order by created_at, id;

-- finished --
-- The runs of a task that are over, in order.
select id from runwire.runs
 where environment_id = %(environment_id)s and task = %(task)s and finished_at is not null
 order by created_at, id;

-- echo --
-- Says what it is given, after a while.
select %(text)s::text as text, length(%(text)s::text) as length, 1 / %(divisor)s::integer as share
  from pg_sleep(%(seconds)s::integer);
