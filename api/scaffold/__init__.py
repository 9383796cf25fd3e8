"""Tables of one's own: the files that a tenants' table takes, as a plan that never overwrites anything."""
