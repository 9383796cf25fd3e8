"""What turns the files of `sql/` and `policies/` into the behaviour of the live database, and back.

`files` reads them, `catalog` asks Postgres what is there, `policies` guards what a DBA may have changed by hand,
`loader` puts all of it together in one transaction. `errors` is what any of it raises.
"""

from api.release.errors import MigrationError, PolicyConflict
from api.release.files import Tree
from api.release.loader import LoadReport, load, recorded_tree, unload

__all__ = ["LoadReport", "MigrationError", "PolicyConflict", "Tree", "load", "recorded_tree", "unload"]
