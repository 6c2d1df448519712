-- The first schema: everything a run is, says and streams.
--
-- Rules that hold in every table:
--   * environment_id is the tenant boundary and comes from the credential, never from a message.
--   * Bodies (payload, output, metadata, chunks, deltas) are JSON kept as text, verbatim: they are
--     validated at the edge, and the database neither parses nor re-orders them.
--   * Time is the database's, through runwire.now_v1(), which a session may set for tests.
--   * A function that changes gets a new version suffix, so old and new processes run together.

create function runwire.now_v1() returns timestamptz
language sql volatile parallel safe
as $$
    select coalesce(nullif(current_setting('runwire.now', true), '')::timestamptz, clock_timestamp())
$$;

-- A time as it goes over the wire: UTC, milliseconds, "Z".
create function runwire.wire_time_v1(at timestamptz) returns text
language sql immutable parallel safe
as $$
    select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;

-- One row: a restore or a rotate-epoch changes it, and with it every cursor ever handed out.
create table runwire.generations (
    only_row boolean primary key default true check (only_row),
    generation uuid not null default gen_random_uuid()
);
insert into runwire.generations default values;

-- The epoch names one history of this database. It changes when the cluster, its timeline, the
-- database or the generation does; positions of another epoch mean nothing here.
create function runwire.epoch_v1() returns text
language sql stable
as $$
    select left(md5(concat_ws('/', s.system_identifier, c.timeline_id, d.oid, g.generation)), 16)
      from pg_control_system() s, pg_control_checkpoint() c, pg_database d, runwire.generations g
     where d.datname = current_database()
$$;

create table runwire.environments (
    id integer generated always as identity primary key,
    name text not null unique check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
    created_at timestamptz not null default runwire.now_v1()
);

-- Only the SHA-256 of a key is kept; the hint is its first characters, for a person to tell keys apart.
create table runwire.api_keys (
    id bigint generated always as identity primary key,
    environment_id integer not null references runwire.environments (id),
    hash bytea not null unique check (octet_length(hash) = 32),
    hint text not null,
    name text not null default '',
    created_at timestamptz not null default runwire.now_v1(),
    revoked_at timestamptz
);

create table runwire.revoked_tokens (
    environment_id integer not null,
    jti text not null,
    expires_at timestamptz not null,
    primary key (environment_id, jti)
);

-- One-time tokens that were used, by jti; written in the transaction of the trigger they paid for.
create table runwire.used_tokens (
    environment_id integer not null,
    jti text not null,
    expires_at timestamptz not null,
    primary key (environment_id, jti)
);

-- What workers have announced: a trigger of a task nobody ever announced is refused.
create table runwire.tasks (
    environment_id integer not null,
    id text not null check (length(id) between 1 and 128),
    queue text not null,
    -- JSON: the retry policy, for the sweep, which has no task code.
    retry text not null default '{}',
    max_duration double precision check (max_duration > 0),
    -- JSON schema of the payload, for forms; null when the task takes anything.
    payload_schema text,
    description text not null default '',
    updated_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, id)
);

-- A queue with a limit has one group per concurrency key; a queue without one has no row here.
create table runwire.queue_groups (
    environment_id integer not null,
    queue text not null,
    concurrency_key text not null default '',
    concurrency_limit integer not null check (concurrency_limit >= 0),
    last_served timestamptz not null default '-infinity',
    paused boolean not null default false,
    primary key (environment_id, queue, concurrency_key)
) with (fillfactor = 70);

-- The one lease: heartbeats touch one row per worker, never the runs.
create table runwire.workers (
    id text primary key,
    environment_id integer not null,
    started_at timestamptz not null default runwire.now_v1(),
    expires_at timestamptz not null,
    stopped_at timestamptz,
    host text not null default '',
    process_id integer,
    version text not null default ''
) with (fillfactor = 50);
create index workers_live on runwire.workers (expires_at) where stopped_at is null;

create table runwire.runs (
    environment_id integer not null,
    id text not null check (id ~ '^run_[0-9a-z]{8,64}$'),
    -- The UTC day the run was created: the partition of its events and chunks, for its whole life.
    bucket date not null,
    task text not null,
    status text not null check (status in (
        'PENDING_VERSION', 'DELAYED', 'QUEUED', 'DEQUEUED', 'EXECUTING', 'WAITING',
        'COMPLETED', 'CANCELED', 'FAILED', 'CRASHED', 'SYSTEM_FAILURE', 'EXPIRED', 'TIMED_OUT')),
    -- Dense: +1 in the very UPDATE that changes the row. The order subscribers see.
    revision bigint not null default 1 check (revision > 0),
    -- +1 on every claim; the only fence of a worker's writes.
    execution integer not null default 0 check (execution >= 0),
    -- Tries counted against max_attempts; never fences.
    attempt integer not null default 0 check (attempt >= 0),
    max_attempts integer check (max_attempts > 0),
    queue text not null,
    concurrency_key text not null default '',
    -- True when the queue has a limit, so that the run is claimed through its group.
    limited boolean not null default false,
    -- queued_at - priority; the order in which a queue is served.
    sort_at timestamptz not null,
    priority double precision not null default 0,
    worker_id text,
    version text,
    payload text,
    payload_type text not null default 'application/json',
    output text,
    output_type text,
    error text,
    tags text[] not null default '{}' check (cardinality(tags) <= 10),
    stream_keys text[] not null default '{}',
    parent_id text,
    root_id text,
    depth integer not null default 0,
    batch_id text,
    idempotency_key text,
    is_test boolean not null default false,
    max_duration double precision check (max_duration > 0),
    ttl double precision check (ttl > 0),
    expires_at timestamptz,
    delayed_until timestamptz,
    cancel_requested_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    queued_at timestamptz,
    started_at timestamptz,
    -- When the current execution was claimed; the active time of finished ones is in duration_ms.
    claimed_at timestamptz,
    duration_ms bigint not null default 0,
    finished_at timestamptz,
    expired_at timestamptz,
    primary key (environment_id, id),
    constraint finished_exactly_when_final check ((finished_at is not null) = (status in (
        'COMPLETED', 'CANCELED', 'FAILED', 'CRASHED', 'SYSTEM_FAILURE', 'EXPIRED', 'TIMED_OUT'))),
    -- A parked waiting run may keep its worker; an executing one always has one.
    constraint held_by_a_worker check (case
        when status in ('DEQUEUED', 'EXECUTING') then worker_id is not null
        when status = 'WAITING' then true
        else worker_id is null end)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Ready runs of unlimited queues, by task, in serving order. Its columns are in no other index, so
-- that the planner cannot walk the primary key past finished runs instead.
create index runs_ready on runwire.runs (environment_id, task, sort_at, id)
    where status = 'QUEUED' and not limited;
-- Ready runs of limited queues, by group.
create index runs_ready_limited on runwire.runs (environment_id, queue, concurrency_key, sort_at, id)
    where status = 'QUEUED' and limited;
-- What executes, by group: the counts that limits are held to are derived from here, never stored.
create index runs_executing on runwire.runs (environment_id, queue, concurrency_key)
    where status in ('DEQUEUED', 'EXECUTING');
-- What a worker holds: the sweep of a dead one, the release of a stopping one.
create index runs_held on runwire.runs (worker_id) where status in ('DEQUEUED', 'EXECUTING');
-- Due delays and retries; due expiries.
create index runs_delayed on runwire.runs (delayed_until) where status = 'DELAYED';
create index runs_expiring on runwire.runs (expires_at)
    where status in ('DELAYED', 'QUEUED', 'PENDING_VERSION') and expires_at is not null;
-- Lists, newest first.
create index runs_by_creation on runwire.runs (environment_id, created_at desc, id desc);
create index runs_by_task on runwire.runs (environment_id, task, created_at desc, id desc);

-- The transition table of runwire_engine.states, row for row (a test compares them).
create table runwire.run_transitions (
    from_status text not null,
    to_status text not null,
    primary key (from_status, to_status)
);
insert into runwire.run_transitions (from_status, to_status) values
    ('PENDING_VERSION', 'QUEUED'), ('PENDING_VERSION', 'EXPIRED'), ('PENDING_VERSION', 'CANCELED'),
    ('DELAYED', 'QUEUED'), ('DELAYED', 'EXPIRED'), ('DELAYED', 'CANCELED'),
    ('QUEUED', 'DEQUEUED'), ('QUEUED', 'EXECUTING'), ('QUEUED', 'EXPIRED'), ('QUEUED', 'CANCELED'),
    ('DEQUEUED', 'EXECUTING'), ('DEQUEUED', 'QUEUED'), ('DEQUEUED', 'DELAYED'),
    ('DEQUEUED', 'CANCELED'), ('DEQUEUED', 'FAILED'), ('DEQUEUED', 'CRASHED'),
    ('DEQUEUED', 'SYSTEM_FAILURE'), ('DEQUEUED', 'TIMED_OUT'),
    ('EXECUTING', 'WAITING'), ('EXECUTING', 'QUEUED'), ('EXECUTING', 'DELAYED'),
    ('EXECUTING', 'COMPLETED'), ('EXECUTING', 'CANCELED'), ('EXECUTING', 'FAILED'),
    ('EXECUTING', 'CRASHED'), ('EXECUTING', 'SYSTEM_FAILURE'), ('EXECUTING', 'TIMED_OUT'),
    ('WAITING', 'QUEUED'), ('WAITING', 'EXECUTING'), ('WAITING', 'CANCELED'),
    ('WAITING', 'FAILED'), ('WAITING', 'CRASHED'), ('WAITING', 'SYSTEM_FAILURE'),
    ('WAITING', 'TIMED_OUT');

-- Refuses what the table does not list, so also a second terminal transition.
create function runwire.guard_transition_v1() returns trigger
language plpgsql
as $$
begin
    if not exists (select from runwire.run_transitions t
                    where t.from_status = old.status and t.to_status = new.status) then
        raise exception 'run % cannot go from % to %', old.id, old.status, new.status
            using errcode = 'RW001';
    end if;
    return new;
end
$$;
create trigger guard_transition before update of status on runwire.runs
    for each row when (old.status is distinct from new.status)
    execute function runwire.guard_transition_v1();

-- After the terminal transition status, output, error, attempt, execution and streams stand still.
create function runwire.guard_final_v1() returns trigger
language plpgsql
as $$
begin
    raise exception 'run % is final (%); its outcome cannot change', old.id, old.status
        using errcode = 'RW002';
end
$$;
create trigger guard_final before update of output, error, execution, attempt, stream_keys on runwire.runs
    for each row when (old.finished_at is not null and (
        old.output is distinct from new.output or old.error is distinct from new.error
        or old.execution <> new.execution or old.attempt <> new.attempt
        or old.stream_keys <> new.stream_keys))
    execute function runwire.guard_final_v1();

-- Apart from runs: a 256 KiB document must not be rewritten with each status. No row: no metadata.
create table runwire.run_metadata (
    environment_id integer not null,
    run_id text not null,
    body text not null check (octet_length(body) <= 262144),
    primary key (environment_id, run_id)
) with (fillfactor = 70);

-- Tags by tag; created_at is the run's. Serves "the newest 1 000 of this tag" from the index alone.
create table runwire.run_tags (
    environment_id integer not null,
    tag text not null check (length(tag) between 1 and 128),
    created_at timestamptz not null,
    run_id text not null,
    primary key (environment_id, tag, created_at, run_id)
);

create table runwire.batches (
    environment_id integer not null,
    id text not null check (id ~ '^batch_[0-9a-z]{8,64}$'),
    -- How many items the creator promised.
    run_count integer not null check (run_count >= 0),
    -- True once every promised item is in batch_items.
    sealed boolean not null default false,
    parent_id text,
    idempotency_key text,
    created_at timestamptz not null default runwire.now_v1(),
    updated_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, id)
);

-- An idempotency hit points at an older run, so a run may stand in several batches.
create table runwire.batch_items (
    environment_id integer not null,
    batch_id text not null,
    index integer not null check (index >= 0),
    run_id text not null,
    primary key (environment_id, batch_id, index)
);
create index batch_items_by_run on runwire.batch_items (environment_id, run_id);

-- A user's idempotency key: the same run again until it expires or the run fails.
create table runwire.idempotency_keys (
    environment_id integer not null,
    task text not null,
    key text not null check (length(key) between 1 and 2048),
    run_id text not null,
    created_at timestamptz not null default runwire.now_v1(),
    expires_at timestamptz not null,
    primary key (environment_id, task, key)
);
create index idempotency_keys_by_run on runwire.idempotency_keys (environment_id, run_id);
create index idempotency_keys_expiring on runwire.idempotency_keys (expires_at);

-- One HTTP call, however often it was retried: the id of what its first arrival made.
create table runwire.request_keys (
    environment_id integer not null,
    operation text not null,
    key text not null check (length(key) between 1 and 256),
    target_id text not null,
    created_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, operation, key)
);
create index request_keys_by_age on runwire.request_keys (created_at);

-- Append-only history of runs. The tail reads it by txid, readers by (run, revision).
-- Partitioned by the run's own creation day: primary keys hold, reads prune to one partition, and
-- a run's history lives and dies whole. No default partition and no foreign key, so that a
-- partition detaches without a scan or a lock on runs.
create table runwire.run_events (
    bucket date not null,
    environment_id integer not null,
    run_id text not null,
    revision bigint not null,
    -- What happened: created, queued, delayed, executing, retrying, waiting, final, canceling,
    -- metadata, tags, streams, batch, released.
    type text not null,
    -- JSON {"set": {wire field: value | null}, "metadata": [operations]}: what turns revision - 1
    -- into revision. A value over 8 KiB stands as {"$large": {"bytes": n}} and is read from the row.
    delta text not null,
    -- The transaction that made it visible: what the snapshot cursor compares.
    txid xid8 not null default pg_current_xact_id(),
    created_at timestamptz not null default runwire.now_v1(),
    -- Routing, so that the hub needs no join: the run's task, tags (old and new) and batch.
    task text not null,
    tags text[] not null default '{}',
    batch_id text,
    primary key (environment_id, run_id, revision, bucket)
) partition by range (bucket);
create index run_events_by_txid on runwire.run_events (txid);

-- One row per stream: the lock under which seq is given out.
create table runwire.streams (
    id bigint generated always as identity unique,
    environment_id integer not null,
    run_id text not null,
    key text not null check (length(key) between 1 and 128),
    bucket date not null,
    next_seq bigint not null default 0 check (next_seq >= 0),
    bytes bigint not null default 0,
    -- The owner's execution that wrote last; an older one is refused.
    execution integer not null default 0,
    -- JSON [{"attempt": n, "execution": n, "fromSeq": n}]: where each execution's chunks begin.
    attempts text not null default '[]',
    -- The execution whose writer said end; null while it may write more.
    ended_execution integer,
    -- Set by the run's terminal transaction: nothing will ever follow. Holds the reason.
    eof_reason text,
    created_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, run_id, key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

create table runwire.stream_chunks (
    bucket date not null,
    stream_id bigint not null,
    seq bigint not null check (seq >= 0),
    -- Of the owner's execution that wrote it; null for a writer from outside the run.
    execution integer,
    attempt integer,
    -- The foreign writer (a run id, or the id of a backend's client); null for the run itself.
    writer text,
    body text not null check (octet_length(body) <= 1048576),
    created_at timestamptz not null default runwire.now_v1(),
    primary key (stream_id, seq, bucket),
    constraint owner_or_writer check ((execution is null) = (writer is not null))
) partition by range (bucket);

-- Each flusher numbers its flushes; this row moves in the same transaction, so that a lost COMMIT
-- acknowledgement is answered by reading it back, never by writing twice. `target` is what is
-- flushed (chunks, metadata, completions, ... or a stream), `writer_id` the flusher.
create table runwire.writers (
    environment_id integer not null,
    target text not null,
    writer_id text not null,
    last_no bigint not null,
    -- JSON: what the flush numbered last_no answered, for whoever lost the answer.
    last_result text not null default 'null',
    updated_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, target, writer_id)
) with (fillfactor = 50);
create index writers_by_age on runwire.writers (updated_at);

-- Makes the daily partitions of both logs from one day to another, both included; a day that
-- exists is left alone. Serialised by an advisory lock: two makers would collide on the name.
create function runwire.make_partitions_v1(first_day date, last_day date) returns integer
language plpgsql
as $$
declare
    day date;
    parent text;
    child text;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('runwire.make_partitions'));
    for day in select d::date from generate_series(first_day, last_day, interval '1 day') d loop
        foreach parent in array array['run_events', 'stream_chunks'] loop
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            if to_regclass('runwire.' || child) is null then
                execute format('create table runwire.%I partition of runwire.%I for values from (%L) to (%L)',
                               child, parent, day, day + 1);
                made := made + 1;
            end if;
        end loop;
    end loop;
    return made;
end
$$;
