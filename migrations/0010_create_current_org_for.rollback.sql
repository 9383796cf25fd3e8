drop function tenancy.current_org_for(text[]);
