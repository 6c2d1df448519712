-- Environments, the tenant boundary, and the API keys that open them.

-- ensure --
-- Makes an environment unless it is there, and returns its id.
-- The insert is tried only when the first look finds nothing: it would use up an id each time.
with found as (
    select id from runwire.environments where name = %(name)s
), made as (
    insert into runwire.environments (name)
    select %(name)s where not exists (select from found)
    on conflict (name) do nothing
    returning id
)
select id from found union all select id from made;

-- name --
-- Returns an environment's name.
select name from runwire.environments where id = %(id)s;

-- insert_key --
-- Stores a key's hash unless it is there.
insert into runwire.api_keys (environment_id, hash, hint, name)
values (%(environment_id)s, %(hash)s, %(hint)s, %(name)s)
on conflict (hash) do nothing;

-- key_by_hash --
-- Finds a key, revoked or not.
select id, environment_id, revoked_at from runwire.api_keys where hash = %(hash)s;

-- environment_of_key --
-- Returns the environment a key opens; no row when it is unknown or revoked.
select environment_id from runwire.api_keys where hash = %(hash)s and revoked_at is null;

-- restore_key --
-- Makes a revoked key valid again.
update runwire.api_keys set revoked_at = null where hash = %(hash)s;

-- revoke_key --
-- Makes a key invalid from now on.
update runwire.api_keys set revoked_at = runwire.now_v1()
 where environment_id = %(environment_id)s and id = %(id)s and revoked_at is null;

-- list_keys --
-- Returns an environment's keys as a person may see them, oldest first.
select id, hint, name, created_at, revoked_at
  from runwire.api_keys
 where environment_id = %(environment_id)s
 order by id;
