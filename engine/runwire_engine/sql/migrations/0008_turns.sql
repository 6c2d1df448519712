-- How many turns a group has had, as its claims count them: who has had fewer is served first.
alter table runwire.queue_groups add column turns bigint not null default 0;
