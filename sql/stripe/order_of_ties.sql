-- Stripe's clock goes by whole seconds, so events of one second may be told in any order. Most say what they have changed and how it was before
-- (previous_attributes, here _previous): so each follows on the one that made it what it was.

-- In how many of its facts what an event says that there was before it differs from what there was. Null: it says nothing of that.
create or replace function stripe.mismatches(p_before jsonb, p_facts jsonb, p_previous jsonb)
returns bigint
language sql
immutable
parallel safe
set search_path = ''
as $$
  select case
    when p_previous is null then 0
    else (
      select count(*)
      from jsonb_each(p_facts || p_previous) as f
      where p_before ? f.key
        and p_before -> f.key <> f.value
    )
  end
$$;

-- The order of events of one second, which come sorted by their ids, after p_before: the one in which the fewest facts contradict each other,
-- else that of their ids. Decided: nothing contradicts itself, and every such order ends in the same. More than six are too many to try.
create or replace function stripe.order_of_ties(
  p_before jsonb, p_facts jsonb[], p_previous jsonb[], out sequence integer[], out is_decided boolean
)
language plpgsql
immutable
set search_path = ''
as $$
begin
  if cardinality(p_facts) = 1 then
    sequence := '{1}';
    is_decided := true;
    return;
  elsif cardinality(p_facts) > 6 then
    sequence := array(select generate_series(1, cardinality(p_facts)));
    is_decided := false;
    return;
  end if;
  with recursive walks as (
    select '{}'::integer[] as path, p_before as facts, 0::bigint as faults
    union all
    select w.path || i.n, w.facts || p_facts[i.n], w.faults + stripe.mismatches(w.facts, p_facts[i.n], p_previous[i.n])
    from walks w
    cross join generate_series(1, cardinality(p_facts)) as i (n)
    where i.n <> all (w.path)
  ),
  whole as (
    select w.path, w.facts, w.faults, min(w.faults) over () as fewest
    from walks w
    where cardinality(w.path) = cardinality(p_facts)
  )
  select w.path, w.fewest = 0 and (select count(distinct o.facts) from whole o where o.faults = o.fewest) = 1
  into sequence, is_decided
  from whole w
  order by w.faults, w.path
  limit 1;
end;
$$;

grant execute on function stripe.mismatches(jsonb, jsonb, jsonb), stripe.order_of_ties(jsonb, jsonb[], jsonb[]) to goldleaves_kernel;
