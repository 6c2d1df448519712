-- ring --
-- Sends notifications, one transaction for all.
select pg_notify(bell.channel, bell.payload)
  from unnest(%(channels)s::text[], %(payloads)s::text[]) as bell (channel, payload);
