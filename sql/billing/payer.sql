-- Who pays for what happens at a moment: the person whose personal organization it was, until billing_start_at; null: the
-- organization, from then on, and always where it was founded as one. The moment is the event's own: when an adjustment happened, not
-- when it counts. Without `set search_path`, so that it is inlined: it is asked for each event.
create or replace function billing.payer(p_billing_user_id uuid, p_billing_start_at timestamptz, p_at timestamptz)
returns uuid
language sql
immutable
parallel safe
as $$ select case when p_at < coalesce(p_billing_start_at, 'infinity') then p_billing_user_id end $$;

grant execute on function billing.payer(uuid, timestamptz, timestamptz) to goldleaves_kernel, member, platform_admin;
