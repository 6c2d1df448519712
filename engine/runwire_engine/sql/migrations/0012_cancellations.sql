-- A run that is canceled takes its children along, and they theirs.
--
-- The transaction that makes a run CANCELED only leaves a row here, if children of it are not over;
-- nobody can trigger more of them, as that takes a lock on a parent that executes. They are canceled
-- afterwards, some at a time, and leave rows of their own.

-- Children that are not over, by parent. In no order: whoever wants one sorts what was found.
create index runs_open_children on runwire.runs (environment_id, parent_id)
    where parent_id is not null and finished_at is null;

create table runwire.cancellations (
    environment_id integer not null,
    run_id text not null,
    created_at timestamptz not null default runwire.now_v1(),
    primary key (environment_id, run_id)
);
create index cancellations_by_age on runwire.cancellations (created_at);

-- In the database, so that it holds for whatever cancels a run, of whatever version.
create function runwire.note_cancel_v1() returns trigger
language plpgsql
as $$
begin
    if exists (select from runwire.runs r
                where r.environment_id = new.environment_id and r.parent_id = new.id
                  and r.finished_at is null) then
        insert into runwire.cancellations (environment_id, run_id)
        values (new.environment_id, new.id)
            on conflict do nothing;
    end if;
    return null;
end
$$;
create trigger note_cancel after update of status on runwire.runs
    for each row when (new.status = 'CANCELED' and old.finished_at is null)
    execute function runwire.note_cancel_v1();
