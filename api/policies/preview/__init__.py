"""`goldleaves policies preview`: how many rows each table shows to somebody, beside how many there are."""
