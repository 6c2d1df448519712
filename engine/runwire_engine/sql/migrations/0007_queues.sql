-- Queues by name: what code and people say of them. What claims go by stays in queue_groups, where a
-- queue has a row exactly while it has a limit or is paused.

create table runwire.queues (
    environment_id integer not null,
    name text not null check (length(name) between 1 and 256),
    id text not null generated always as
        ('queue_' || left(md5(environment_id::text || '/' || name), 24)) stored,
    -- What code says: the worker that started last, or a trigger since.
    base_limit integer check (base_limit >= 0),
    -- What somebody said instead, until they take it back.
    override_limit integer check (override_limit >= 0),
    overridden_at timestamptz,
    paused boolean not null default false,
    created_at timestamptz not null default runwire.now_v1(),
    updated_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, name),
    constraint overridden_at_a_time check ((override_limit is null) = (overridden_at is null))
);
create unique index queues_by_id on runwire.queues (environment_id, id);

insert into runwire.queues (environment_id, name, base_limit, paused)
select environment_id, queue, concurrency_limit, paused
  from runwire.queue_groups
 where concurrency_key = '';
insert into runwire.queues (environment_id, name)
select distinct environment_id, queue from runwire.tasks
    on conflict do nothing;

-- How long a run of the task may wait to start, unless its trigger says otherwise.
alter table runwire.tasks add column ttl double precision check (ttl > 0);

-- Which run further triggers of a key push back, while it waits for its time.
create table runwire.debounce_keys (
    environment_id integer not null,
    task text not null,
    key text not null check (length(key) between 1 and 512),
    run_id text not null,
    -- When the run is due: from then on the key leads nowhere.
    expires_at timestamptz not null,
    primary key (environment_id, task, key)
);
create index debounce_keys_expiring on runwire.debounce_keys (expires_at);
