-- notification_queue --
-- How full the queue of notifications is; asking also cleans up behind dead listeners.
select pg_notification_queue_usage() as usage;

-- horizon --
-- What has kept dead rows of this database from being cleaned up for longest, and since when, where
-- that can be seen. Others inherit the age of an open transaction; its own comes before theirs.
select holder.kind, holder.name, holder.held, holder.seconds
  from (select 'session' as kind, a.pid::text as name,
               coalesce(a.backend_xid, a.backend_xmin)::text as held,
               greatest(age(a.backend_xid), age(a.backend_xmin)) as age,
               case when a.backend_xid is null then 2 else 1 end as place,
               extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds
          from pg_stat_activity a
         where (a.datname = current_database() or a.datname is null)
           and a.pid <> pg_backend_pid()
           and (a.backend_xid is not null or a.backend_xmin is not null)
           -- What vacuums holds nothing back, whatever it shows.
           and not exists (select from pg_stat_progress_vacuum v where v.pid = a.pid)
        union all
        select 'prepared transaction', gid, transaction::text, age(transaction), 0,
               extract(epoch from clock_timestamp() - prepared)::float8
          from pg_prepared_xacts
         where database = current_database()
        union all
        -- One that stands still while nothing happens holds nothing back.
        select 'replication slot', slot_name::text, concat_ws('/', xmin, catalog_xmin),
               greatest(age(xmin), age(catalog_xmin)), 3, null
          from pg_replication_slots
         where (database = current_database() or database is null)
           and greatest(age(xmin), age(catalog_xmin)) > 0
       ) as holder
 order by holder.age desc, holder.place, holder.seconds desc nulls last
 limit 1;
