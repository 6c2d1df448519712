-- The ledger of migrations: which numbered file was applied, when, and with what content.

-- serialise --
-- Waits for its turn among processes that migrate; held until the transaction ends.
select pg_advisory_xact_lock(hashtext('runwire.migrate'));

-- wait_briefly --
-- Gives up soon on a table's lock: everybody else queues behind the one who waits for it.
set local lock_timeout = '5s';

-- create_schema --
-- Makes our schema.
create schema if not exists runwire;

-- create_table --
-- Makes the ledger.
create table if not exists runwire.migrations (
    version integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp()
);

-- applied --
-- Returns the ledger, oldest first.
select version, name, checksum from runwire.migrations order by version;

-- record --
-- Notes a file as applied.
insert into runwire.migrations (version, name, checksum)
values (%(version)s, %(name)s, %(checksum)s);

-- server --
-- Returns what decides whether this server can be used.
select current_setting('server_version_num')::integer as version, pg_is_in_recovery() as is_standby;

-- make_partitions --
-- Makes the daily partitions of the logs from yesterday to a week ahead, in UTC.
select runwire.make_partitions_v2(today - 1, today + 7) as made
  from (select (runwire.now_v1() at time zone 'UTC')::date as today) clock;
