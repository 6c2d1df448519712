-- The runs that a run triggered, and those that a schedule started, newest first: a list goes along
-- an index. What is neither is in neither, and costs nothing.
create index runs_by_parent on runwire.runs (environment_id, parent_id, created_at desc, id desc)
    where parent_id is not null;
create index runs_by_schedule on runwire.runs (environment_id, schedule_id, created_at desc, id desc)
    where schedule_id is not null;
