-- What is due is found for one environment without reading past what others have waiting.
drop index runwire.runs_delayed;
create index runs_delayed on runwire.runs (environment_id, delayed_until) where status = 'DELAYED';
drop index runwire.runs_waking;
create index runs_waking on runwire.runs (environment_id, wake_at)
    where status = 'WAITING' and wake_at is not null;
drop index runwire.waitpoints_due;
create index waitpoints_due on runwire.waitpoints (environment_id, timeout_at)
    where completed_at is null and timeout_at is not null;

-- What is not over, and what did not complete, among a million runs that did: for lists by status,
-- and for feeds that resume.
create index runs_open on runwire.runs (environment_id, created_at desc, id desc)
    where finished_at is null;
create index runs_failed on runwire.runs (environment_id, created_at desc, id desc)
    where status in ('CANCELED', 'FAILED', 'CRASHED', 'SYSTEM_FAILURE', 'EXPIRED', 'TIMED_OUT');

-- The sweep looks for what has expired.
create index used_tokens_expiring on runwire.used_tokens (expires_at);
create index revoked_tokens_expiring on runwire.revoked_tokens (expires_at);
create index waitpoints_completed on runwire.waitpoints (completed_at)
    where completed_at is not null;
