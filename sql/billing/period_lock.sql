-- The period lock. Writers of usage share an advisory lock of their organization's slot, finalization takes it alone: an event
-- that commits while its period is being finalized is either on the invoice or refused. A change of who pays takes it alone too.
-- Row locks do not do here: `for share` writers starve the finalizer, and a period that does not exist yet has no row to lock.
-- Lock in a statement of its own, read in a later one: a snapshot older than the lock does not see what the lock waited for.

create or replace function billing.period_lock_class()
returns integer
language sql
immutable
parallel safe
as $$ select 726501 $$;

create or replace function billing.period_lock_slot(p_organization_id uuid)
returns integer
language sql
immutable
parallel safe
as $$ select pg_catalog.uuid_hash(p_organization_id) & 1023 $$;

-- Slots are taken in order, so that writers of several organizations never wait for each other in a circle.
create or replace function billing.share_period_locks(p_organization_ids uuid[])
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform pg_advisory_xact_lock_shared(billing.period_lock_class(), s.slot)
  from (
    select distinct billing.period_lock_slot(i.organization_id) as slot
    from unnest(p_organization_ids) as i (organization_id)
    order by 1
  ) as s;
end;
$$;

-- Its waiting stops new writers of the slot, so it gives up after two seconds, lets them pass and tries again, if a statement_timeout
-- leaves time to say how that ended. One organization a transaction: who holds one slot and waits for the next would deadlock with
-- writers of both.
create or replace function billing.take_period_lock(p_organization_id uuid)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_lock_timeout text := current_setting('lock_timeout');
  v_statement_timeout interval := current_setting('statement_timeout')::interval;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'PT500',
      message = 'ISOLATION_LEVEL: this needs READ COMMITTED, else events that the period lock waited for stay unseen';
  end if;
  if exists (
    select from pg_catalog.pg_locks
    where pid = pg_backend_pid()
      and locktype = 'advisory'
      and mode = 'ExclusiveLock'
      and classid = billing.period_lock_class()::oid
      and objid <> billing.period_lock_slot(p_organization_id)::oid
  ) then
    raise exception using
      errcode = 'PT409',
      message = 'ONE_ORGANIZATION_A_TRANSACTION: this transaction holds the period lock of another organization',
      hint = 'Commit it first.';
  end if;

  for v_try in 1 .. 15 loop
    begin
      set local lock_timeout = '2s';
      perform pg_advisory_xact_lock(billing.period_lock_class(), billing.period_lock_slot(p_organization_id));
      perform set_config('lock_timeout', v_lock_timeout, true);
      return;
    exception when lock_not_available then
      perform pg_sleep(0.05 + random() * 0.2);
    end;
    exit when v_statement_timeout > '0' and clock_timestamp() > statement_timestamp() + v_statement_timeout - interval '3 seconds';
  end loop;
  raise exception using
    errcode = 'PT503',
    message = 'PERIOD_BUSY: writers of usage hold the period, it could not be locked in time',
    hint = 'Look for long transactions in pg_stat_activity, then try again.';
end;
$$;

-- For who mostly holds it already: then it costs nothing. Whoever finds it free waits for nobody, and so for nobody in a circle.
create or replace function billing.hold_period_lock(p_organization_id uuid)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  if current_setting('transaction_isolation') <> 'read committed'
    or not pg_try_advisory_xact_lock(billing.period_lock_class(), billing.period_lock_slot(p_organization_id))
  then
    perform billing.take_period_lock(p_organization_id);
  end if;
end;
$$;

grant execute on function billing.period_lock_class(), billing.period_lock_slot(uuid), billing.share_period_locks(uuid[]),
  billing.take_period_lock(uuid), billing.hold_period_lock(uuid) to goldleaves_kernel;
