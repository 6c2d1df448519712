-- Streams of Runwire's own.
--
-- Their keys begin with '$': the log of a run, and what was sent to its input streams. A run does not
-- list them and they are no news of it, so they cost no revision and no event; they stand here so
-- that the run's end can end them too.

alter table runwire.runs add column reserved_stream_keys text[] not null default '{}';
