-- Runs that wait: what they wait for, what a replay of their code has already done, and who is woken.
--
-- A wait is over as soon as what it waits for is a fact in another row (a run is final, a token is
-- completed, a time has come); nothing is copied. The transaction that makes the fact only leaves a
-- row in runwire.wakes; a second one looks at who waits, under the lock of the waiting run. Entering
-- WAITING looks in the same way under the same lock, so that no fact is missed in between.

alter table runwire.runs
    -- Somebody waits for its end.
    add column awaited boolean not null default false,
    -- QUEUED because a wait of it is over: its next claim is no new attempt.
    add column resuming boolean not null default false,
    -- The worker in whose memory its code waits, as long as nobody else has claimed it.
    add column parked_by text,
    -- Whose journal counts: +1 when its code starts over after an exception of its own.
    add column generation integer not null default 0,
    -- The execution since which what it writes is one piece: readers of its streams see that one.
    add column lineage integer not null default 0,
    -- How often it was WAITING. 0: it has no journal.
    add column waited integer not null default 0,
    -- The active time of this attempt before its last claim.
    add column active_ms bigint not null default 0,
    -- While WAITING: when the first of its waits ends by time.
    add column wake_at timestamptz;

create index runs_waking on runwire.runs (wake_at) where status = 'WAITING' and wake_at is not null;

-- What one execution of a run's code asked for, in order, by branch (an asyncio task): the children
-- it triggered and what it waited for. A replay is answered from here.
create table runwire.waits (
    environment_id integer not null,
    run_id text not null,
    generation integer not null,
    branch text not null,
    ordinal integer not null check (ordinal >= 0),
    kind text not null check (kind in ('trigger', 'run', 'batch', 'time', 'token', 'input')),
    -- What was asked for, to tell whether a replay asks for the same.
    target text not null,
    -- Still waited for, as far as the database was told.
    open boolean not null,
    -- The runs that were triggered, in order; and which of them an idempotency key led to.
    run_ids text[] not null default '{}',
    cached_ids text[] not null default '{}',
    batch_id text,
    waitpoint_id text,
    -- For an input: the run's own stream, and the seq of the chunk that is waited for.
    stream_key text,
    seq bigint,
    -- For a time, when it has come; for an input, when it is waited for no longer.
    due_at timestamptz,
    created_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, run_id, generation, branch, ordinal)
);
create index waits_inputs on runwire.waits (environment_id, run_id) where open and kind = 'input';

-- How far the branches of a run's code had come when it was last WAITING: JSON, see
-- runwire_engine.journal.
create table runwire.checkpoints (
    environment_id integer not null,
    run_id text not null,
    generation integer not null,
    marks text not null,
    primary key (environment_id, run_id)
);

-- Who waits for a waitpoint, or for a run that is not its child. A parent is found by its children.
create table runwire.wait_targets (
    environment_id integer not null,
    target_id text not null,
    run_id text not null,
    primary key (environment_id, target_id, run_id)
);
create index wait_targets_by_run on runwire.wait_targets (environment_id, run_id);

-- Facts (of runs, of waitpoints) whose waiters have not been looked at yet.
create table runwire.wakes (
    environment_id integer not null,
    target_id text not null,
    created_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, target_id)
);
create index wakes_by_age on runwire.wakes (created_at);

-- What somebody outside of the engine completes, once: a token.
create table runwire.waitpoints (
    environment_id integer not null,
    id text not null check (id ~ '^waitpoint_[0-9a-z]{8,64}$'),
    -- Null while it is pending; false: it timed out.
    ok boolean,
    output text,
    output_type text not null default 'application/json',
    error text,
    tags text[] not null default '{}' check (cardinality(tags) <= 10),
    timeout_at timestamptz,
    idempotency_key text check (length(idempotency_key) between 1 and 2048),
    idempotency_expires_at timestamptz,
    created_at timestamptz not null default runwire.now_v1(),
    completed_at timestamptz,
    primary key (environment_id, id),
    constraint completed_exactly_when_decided check ((completed_at is null) = (ok is null))
);
create unique index waitpoints_by_key on runwire.waitpoints (environment_id, idempotency_key)
    where idempotency_key is not null;
create index waitpoints_due on runwire.waitpoints (timeout_at)
    where completed_at is null and timeout_at is not null;
create index waitpoints_by_creation on runwire.waitpoints (environment_id, created_at desc, id desc);

-- In the database, so that it holds for whatever ends a run, of whatever version.
create function runwire.note_end_v1() returns trigger
language plpgsql
as $$
begin
    insert into runwire.wakes (environment_id, target_id)
    values (new.environment_id, new.id)
        on conflict do nothing;
    return null;
end
$$;
create trigger note_end after update of status on runwire.runs
    for each row when (new.awaited and new.finished_at is not null and old.finished_at is null)
    execute function runwire.note_end_v1();

-- Whether what a wait waits for is a fact. A run that is gone for its age counts as over.
create function runwire.is_over_v1(w runwire.waits, now timestamptz) returns boolean
language sql stable
as $$
    select case w.kind
        when 'time' then w.due_at <= now
        when 'token' then exists (
            select from runwire.waitpoints p
             where p.environment_id = w.environment_id and p.id = w.waitpoint_id
               and p.completed_at is not null)
        when 'input' then coalesce(w.due_at <= now, false) or exists (
            select from runwire.streams s
             where s.environment_id = w.environment_id and s.run_id = w.run_id
               and s.key = w.stream_key and s.next_seq > w.seq)
        else not exists (
            select from unnest(w.run_ids) as target (id)
             cross join lateral (
                   select r.finished_at
                     from runwire.runs r
                    where r.environment_id = w.environment_id and r.id = target.id
                    limit 1) as awaited
             where awaited.finished_at is null)
    end
$$;
