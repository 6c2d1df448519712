-- Schedules: which task gets a run at which times, and which run came of which tick.

create table runwire.schedules (
    environment_id integer not null,
    id text not null check (id ~ '^sched_[0-9a-z]{8,64}$'),
    -- DECLARATIVE: stands in the code of its task and is announced by workers. IMPERATIVE: made by a call.
    type text not null check (type in ('DECLARATIVE', 'IMPERATIVE')),
    task text not null check (length(task) between 1 and 128),
    -- Five fields, read in the time zone (an IANA name).
    cron text not null,
    timezone text not null default 'UTC',
    -- Over how long the runs of a tick are spread ("30m", "50%"); null: they are due at once.
    due_window text,
    -- Which ticks get a run after a time when none was made: the newest, or all of them.
    missed text not null default 'newest' check (missed in ('newest', 'all')),
    -- Of a declarative schedule: its task.
    deduplication_key text not null check (length(deduplication_key) between 1 and 256),
    external_id text check (length(external_id) <= 256),
    active boolean not null default true,
    -- Since when no living worker declares it: it waits until one does. Set when a tick comes due.
    suspended_at timestamptz,
    -- The next tick: its time by the cron, and when its run is due, which a window makes later.
    next_at timestamptz,
    due_at timestamptz,
    -- The last tick that got a run, by the cron.
    last_at timestamptz,
    -- Why the last tick got no run.
    error text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    primary key (environment_id, id),
    unique (environment_id, type, deduplication_key),
    constraint due_exactly_when_next check ((due_at is null) = (next_at is null)),
    constraint due_only_when_active check (active or due_at is null)
) with (fillfactor = 70);
create index schedules_due on runwire.schedules (due_at)
    where due_at is not null and suspended_at is null;
create index schedules_suspended on runwire.schedules (suspended_at) where suspended_at is not null;
create index schedules_by_age on runwire.schedules (environment_id, created_at, id);

-- The tasks whose schedules a worker's code declares.
alter table runwire.workers add column declares text[] not null default '{}';

-- Of a run that came of a tick. One tick, one run, whoever else believes to be its server.
alter table runwire.runs add column schedule_id text;
alter table runwire.runs add column scheduled_at timestamptz;
create unique index runs_by_tick on runwire.runs (environment_id, schedule_id, scheduled_at)
    where schedule_id is not null;
