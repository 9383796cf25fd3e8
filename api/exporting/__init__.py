"""`goldleaves export`: usage and invoices out of the database, row by row, however many there are."""
