-- end_streams --
-- Says of every stream of final runs that nothing will ever follow.
update runwire.streams s
   set eof_reason = ended.reason
  from unnest(%(environment_ids)s::integer[], %(ids)s::text[], %(reasons)s::text[])
       as ended (environment_id, run_id, reason)
 where s.environment_id = any(%(environment_ids)s::integer[]) and s.run_id = any(%(ids)s::text[])
   and s.environment_id = ended.environment_id and s.run_id = ended.run_id
   and s.eof_reason is null
returning s.environment_id, s.run_id, s.key, s.next_seq;

-- forget_keys --
-- Frees the idempotency keys of failed runs.
delete from runwire.idempotency_keys
 where environment_id = any(%(environment_ids)s::integer[]) and run_id = any(%(ids)s::text[]);
