-- by_creation_after --
-- Runs by creation, older than a place, newest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- by_creation_before --
-- Runs by creation, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at, r.id
 limit %(limit)s;

-- by_task_after --
-- Runs of a task, older than a place, newest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.task = %(task)s
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- by_task_before --
-- Runs of a task, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.task = %(task)s
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at, r.id
 limit %(limit)s;

-- by_parent_after --
-- Runs that a run triggered, older than a place, newest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.parent_id = %(parent_id)s
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(schedule_id)s::text is null or r.schedule_id = %(schedule_id)s)
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- by_parent_before --
-- Runs that a run triggered, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.parent_id = %(parent_id)s
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(schedule_id)s::text is null or r.schedule_id = %(schedule_id)s)
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at, r.id
 limit %(limit)s;

-- by_schedule_after --
-- Runs that a schedule started, older than a place, newest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.schedule_id = %(schedule_id)s
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- by_schedule_before --
-- Runs that a schedule started, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.schedule_id = %(schedule_id)s
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at, r.id
 limit %(limit)s;

-- held_after --
-- Runs that a worker holds, older than a place, newest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.status in ('DEQUEUED', 'EXECUTING')
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- held_before --
-- Runs that a worker holds, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s and r.status in ('DEQUEUED', 'EXECUTING')
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at, r.id
 limit %(limit)s;

-- open_after --
-- Runs that are not over, older than a place, newest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and r.finished_at is null
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- open_before --
-- Runs that are not over, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and r.finished_at is null
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at, r.id
 limit %(limit)s;

-- failed_after --
-- Runs that are over and did not complete, older than a place, newest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and r.status in ('CANCELED', 'FAILED', 'CRASHED', 'SYSTEM_FAILURE', 'EXPIRED', 'TIMED_OUT')
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- failed_before --
-- Runs that are over and did not complete, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.runs r
 where r.environment_id = %(environment_id)s
   and r.status in ('CANCELED', 'FAILED', 'CRASHED', 'SYSTEM_FAILURE', 'EXPIRED', 'TIMED_OUT')
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
   and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
   and (%(tasks)s::text[] is null or r.task = any(%(tasks)s::text[]))
   and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
 order by r.created_at, r.id
 limit %(limit)s;

-- by_tag_after --
-- Runs with a tag, older than a place, newest first.
select r.created_at, r.id
  from runwire.run_tags t
 cross join lateral (
       select r.created_at, r.id
         from runwire.runs r
        where r.environment_id = t.environment_id and r.id = t.run_id
          and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
          and (%(tasks)s::text[] is null or r.task || '' = any(%(tasks)s::text[]))
          and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
        limit 1) as r
 where t.environment_id = %(environment_id)s and t.tag = %(tag)s
   and (t.created_at, t.run_id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or t.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or t.created_at <= %(created_to)s)
 order by t.created_at desc, t.run_id desc
 limit %(limit)s;

-- by_tag_before --
-- Runs with a tag, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.run_tags t
 cross join lateral (
       select r.created_at, r.id
         from runwire.runs r
        where r.environment_id = t.environment_id and r.id = t.run_id
          and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
          and (%(tasks)s::text[] is null or r.task || '' = any(%(tasks)s::text[]))
          and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
        limit 1) as r
 where t.environment_id = %(environment_id)s and t.tag = %(tag)s
   and (t.created_at, t.run_id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or t.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or t.created_at <= %(created_to)s)
 order by t.created_at, t.run_id
 limit %(limit)s;

-- of_batch_after --
-- Runs of a batch, older than a place, newest first.
select r.created_at, r.id
  from runwire.batch_items i
 cross join lateral (
       select r.created_at, r.id
         from runwire.runs r
        where r.environment_id = i.environment_id and r.id = i.run_id
          and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
          and (%(tasks)s::text[] is null or r.task || '' = any(%(tasks)s::text[]))
          and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
          and (%(parent_id)s::text is null or r.parent_id || '' = %(parent_id)s)
          and (%(schedule_id)s::text is null or r.schedule_id || '' = %(schedule_id)s)
        limit 1) as r
 where i.environment_id = %(environment_id)s and i.batch_id = %(batch_id)s
   and (r.created_at, r.id) < (coalesce(%(from_time)s::timestamptz, 'infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
 order by r.created_at desc, r.id desc
 limit %(limit)s;

-- of_batch_before --
-- Runs of a batch, newer than a place, oldest first.
select r.created_at, r.id
  from runwire.batch_items i
 cross join lateral (
       select r.created_at, r.id
         from runwire.runs r
        where r.environment_id = i.environment_id and r.id = i.run_id
          and (%(statuses)s::text[] is null or r.status = any(%(statuses)s::text[]))
          and (%(tasks)s::text[] is null or r.task || '' = any(%(tasks)s::text[]))
          and (%(tags)s::text[] is null or r.tags && %(tags)s::text[])
          and (%(parent_id)s::text is null or r.parent_id || '' = %(parent_id)s)
          and (%(schedule_id)s::text is null or r.schedule_id || '' = %(schedule_id)s)
        limit 1) as r
 where i.environment_id = %(environment_id)s and i.batch_id = %(batch_id)s
   and (r.created_at, r.id) > (coalesce(%(from_time)s::timestamptz, '-infinity'),
                                  coalesce(%(from_id)s::text, ''))
   and (%(created_from)s::timestamptz is null or r.created_at >= %(created_from)s)
   and (%(created_to)s::timestamptz is null or r.created_at <= %(created_to)s)
 order by r.created_at, r.id
 limit %(limit)s;

-- summaries --
-- Runs without their payloads and outputs, which may be megabytes each.
select r.environment_id, r.id, r.bucket, r.task, r.status, r.revision, r.execution, r.attempt,
       r.max_attempts, r.queue, r.concurrency_key, r.limited, r.sort_at, r.priority, r.worker_id,
       r.version, null as payload, r.payload_type, null as output, r.output_type, r.error, r.tags,
       r.stream_keys, r.parent_id, r.root_id, r.depth, r.batch_id, r.idempotency_key, r.is_test,
       r.max_duration, r.ttl, r.expires_at, r.delayed_until, r.cancel_requested_at, r.created_at,
       r.updated_at, r.queued_at, r.started_at, r.claimed_at, r.duration_ms, r.finished_at,
       r.expired_at, m.body as metadata
  from runwire.runs r
  left join lateral (
       select body from runwire.run_metadata m
        where m.environment_id = r.environment_id and m.run_id = r.id
        limit 1) as m on true
 where r.environment_id = %(environment_id)s and r.id = any(%(ids)s::text[]);
