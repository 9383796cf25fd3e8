"""`goldleaves policies explain`: who may do what with a table, in sentences, and how it is read under row security."""
