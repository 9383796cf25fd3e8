-- An organization that has used anything or had a subscription stays, for what it pays: its owner, or whoever deletes it in SQL, is told so. A foreign key
-- keeps it as well, whose error differs between versions of Postgres and says nothing to a client.
create or replace function billing.keep_billed_organization()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if exists (select from billing.billing_periods p where p.organization_id = old.id)
    or exists (
      select from billing.subscription_phases f
      where f.organization_id = old.id
        and f.starts_at <= clock_timestamp()
    )
  then
    raise exception using
      errcode = 'PT409',
      message = 'ORGANIZATION_BILLED: the organization has used something that is billed, or had a subscription, and stays for its invoices',
      hint = 'Remove its people, or hand it over with transfer_ownership.';
  end if;
  return old;
end;
$$;

alter function billing.keep_billed_organization() owner to goldleaves_kernel;

create or replace trigger keep_billed before delete on tenancy.organizations
  for each row execute function billing.keep_billed_organization();
