-- What cannot change is checked when it is written, not again at each claim and end of its run.
--
-- Postgres checks every constraint of a row at every update of it, and reads each one's text anew for
-- each statement: a fifteenth of what a claim and an end cost together.
create function runwire.check_run_v1() returns trigger
language plpgsql
as $$
declare
    broken text := case
        when new.id !~ '^run_[0-9a-z]+$' or length(new.id) not between 12 and 68
            then 'runs_id_check'
        when cardinality(new.tags) > 10 then 'runs_tags_check'
        when new.ttl <= 0 then 'runs_ttl_check'
        when new.max_duration <= 0 then 'runs_max_duration_check'
        else 'runs_status_check' end;
begin
    raise exception 'new row for relation "runs" violates check constraint "%"', broken
        using errcode = 'check_violation', schema = 'runwire', table = 'runs', constraint = broken;
end
$$;
create trigger check_new after insert on runwire.runs
    for each row when (
        new.id !~ '^run_[0-9a-z]+$' or length(new.id) not between 12 and 68
        or cardinality(new.tags) > 10 or new.ttl <= 0 or new.max_duration <= 0
        or new.status not in ('PENDING_VERSION', 'DELAYED', 'QUEUED', 'DEQUEUED', 'EXECUTING',
                              'WAITING', 'COMPLETED', 'CANCELED', 'FAILED', 'CRASHED',
                              'SYSTEM_FAILURE', 'EXPIRED', 'TIMED_OUT'))
    execute function runwire.check_run_v1();
-- A status that there is not is no transition either.
create trigger check_changed after update of id, tags, ttl, max_duration on runwire.runs
    for each row when (
        new.id !~ '^run_[0-9a-z]+$' or length(new.id) not between 12 and 68
        or cardinality(new.tags) > 10 or new.ttl <= 0 or new.max_duration <= 0)
    execute function runwire.check_run_v1();
alter table runwire.runs
    drop constraint runs_id_check,
    drop constraint runs_tags_check,
    drop constraint runs_ttl_check,
    drop constraint runs_max_duration_check,
    drop constraint runs_status_check,
    drop constraint runs_attempt_check,
    drop constraint runs_execution_check,
    drop constraint runs_revision_check,
    drop constraint runs_max_attempts_check,
    -- One text to be read instead of four.
    add constraint runs_counts_check
        check (attempt >= 0 and execution >= 0 and revision > 0 and max_attempts > 0);

-- The guards, as before, but behind the update: in front of it, each row is locked for them once more.
drop trigger guard_final on runwire.runs;
create trigger guard_final after update of output, error, execution, attempt, stream_keys
    on runwire.runs
    for each row when (
        old.finished_at is not null
        and (old.output is distinct from new.output or old.error is distinct from new.error
             or old.execution <> new.execution or old.attempt <> new.attempt
             or old.stream_keys <> new.stream_keys))
    execute function runwire.guard_final_v1();
drop trigger guard_transition on runwire.runs;
create trigger guard_transition after update of status on runwire.runs
    for each row when (
        old.status is distinct from new.status
        and not (old.status = 'QUEUED' and new.status = 'EXECUTING')
        and not (old.status = 'EXECUTING' and new.status = 'COMPLETED'))
    execute function runwire.guard_transition_v1();
