-- idle_timeout --
-- Shows whether the session has our settings, which a pooler in between may have dropped.
select current_setting('idle_in_transaction_session_timeout');

-- is_read_only --
-- Whether this session may only read: on a standby, or because somebody has set it so.
select current_setting('transaction_read_only')::boolean as is_read_only;

-- one_plan --
-- Has the statements of this transaction go by the plan that was made for all parameters.
set local plan_cache_mode = force_generic_plan;
