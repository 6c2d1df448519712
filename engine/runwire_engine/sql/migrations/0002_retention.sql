-- History ends, and another one may begin.

-- As v1, but a standby that was promoted shows its new timeline at once, not only after its next
-- checkpoint. At any other time both are the same, so that old and new processes agree.
create function runwire.epoch_v2() returns text
language sql stable
as $$
    select left(md5(concat_ws('/', s.system_identifier,
                              case when pg_is_in_recovery() then c.timeline_id
                                   else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))
                                        ::bit(32)::integer end,
                              d.oid, g.generation)), 16)
      from pg_control_system() s, pg_control_checkpoint() c, pg_database d, runwire.generations g
     where d.datname = current_database()
$$;

-- A day's events and chunks are dropped once all its runs are over and old enough, its runs some time
-- later.
--
-- A day is closed first: from then on nothing can be written to it, and what may be missing from now
-- on is known. Only then its partitions are detached and dropped, by any process, in steps that the
-- next one can go on from.

create table runwire.closed_days (
    bucket date primary key,
    -- Transaction ids mean something within one epoch only.
    epoch text not null default runwire.epoch_v2(),
    -- The last transaction that wrote to the day's history; null: none did. The cursor of a feed
    -- that does not see it as past can no longer be resumed from.
    last_txid xid8,
    closed_at timestamptz not null default runwire.now_v1(),
    -- When its partitions were gone, and when its runs were.
    dropped_at timestamptz,
    emptied_at timestamptz
);

create function runwire.refuse_closed_day_v1() returns trigger
language plpgsql
as $$
begin
    raise exception 'the history of % is closed', new.bucket using errcode = 'RW003';
end
$$;

-- A run that keeps its day's history: one that is not over, or not for long enough.
create function runwire.keeper_of_day_v1(day date, final_before timestamptz)
returns table (environment_id integer, run_id text)
language sql stable
as $$
    select r.environment_id, r.id
      from runwire.environments e
     cross join lateral (
          select r.environment_id, r.id
            from runwire.runs r
           where r.environment_id = e.id
             and r.created_at >= day::timestamp at time zone 'UTC'
             and r.created_at < (day + 1)::timestamp at time zone 'UTC'
             and (r.finished_at is null or r.finished_at > final_before)
           limit 1) as r
     limit 1
$$;

-- Closes a day if none of its runs keeps it. Writers of that one day wait meanwhile, readers do not.
-- A run that somebody's open transaction still adds to the day holds a lock on its partition, and
-- makes this fail; one that comes later is refused by the trigger.
create function runwire.close_day_v1(day date, final_before timestamptz) returns boolean
language plpgsql
as $$
declare
    parent text;
    child text;
    last xid8;
begin
    perform set_config('lock_timeout', '200ms', true);
    foreach parent in array array['run_events', 'stream_chunks'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass('runwire.' || child) is not null then
            execute format('lock table runwire.%I in share row exclusive mode', child);
        end if;
    end loop;
    if exists (select from runwire.closed_days d where d.bucket = day) then
        return true;
    end if;
    if exists (select from runwire.keeper_of_day_v1(day, final_before)) then
        return false;
    end if;
    foreach parent in array array['run_events', 'stream_chunks'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass('runwire.' || child) is not null then
            execute format('create trigger refuse_closed_day before insert on runwire.%I'
                           ' for each row execute function runwire.refuse_closed_day_v1()', child);
            if parent = 'run_events' then
                execute format('select txid from runwire.%I order by txid desc limit 1', child)
                   into last;
            end if;
        end if;
    end loop;
    insert into runwire.closed_days (bucket, last_txid) values (day, last);
    return true;
end
$$;

-- As v1, but nobody waits: a partition is made by itself and attached, which readers and writers of
-- the log do not notice; `create table ... partition of` would lock them all out. A closed day stays
-- closed.
create function runwire.make_partitions_v2(first_day date, last_day date) returns integer
language plpgsql
as $$
declare
    day date;
    parent text;
    child text;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('runwire.make_partitions'));
    for day in
        select d::date from generate_series(first_day, last_day, interval '1 day') d
         where not exists (select from runwire.closed_days c where c.bucket = d::date)
    loop
        foreach parent in array array['run_events', 'stream_chunks'] loop
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            if to_regclass('runwire.' || child) is null then
                execute format('create table runwire.%I (like runwire.%I including all)', child, parent);
                execute format('alter table runwire.%I attach partition runwire.%I'
                               ' for values from (%L) to (%L)', parent, child, day, day + 1);
                made := made + 1;
            end if;
        end loop;
    end loop;
    return made;
end
$$;
