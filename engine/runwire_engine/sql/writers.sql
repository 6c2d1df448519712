-- ensure --
-- Makes a writer's row, waiting for a transaction that is making it.
insert into runwire.writers (environment_id, target, writer_id, last_no)
values (%(environment_id)s, %(target)s, %(writer_id)s, 0)
    on conflict do nothing;

-- answered --
-- Reads what a writer's last flush answered; waits for one that is still committing.
select last_no, last_result
  from runwire.writers
 where environment_id = %(environment_id)s and target = %(target)s and writer_id = %(writer_id)s
   for update;

-- record --
-- Records a flush; returns nothing when one of this number (or a later one) is stored already:
-- then this one must not commit.
insert into runwire.writers as w (environment_id, target, writer_id, last_no, last_result)
values (%(environment_id)s, %(target)s, %(writer_id)s, %(number)s, %(result)s)
    on conflict (environment_id, target, writer_id) do update
   set last_no = excluded.last_no, last_result = excluded.last_result,
       updated_at = runwire.now_v1()
 where w.last_no < excluded.last_no
returning w.last_no;

-- close --
-- Ends a writer: no flush of it is stored any more. Waits for one that is still committing, and
-- returns the number of the last that is, also when asked again.
update runwire.writers
   set last_no = 9223372036854775807,
       last_result = case when last_no = 9223372036854775807 then last_result
                          else last_no::text end
 where environment_id = %(environment_id)s and target = %(target)s and writer_id = %(writer_id)s
returning last_result::bigint as last_no;
