"""yoyo's own hook: whoever applies migrations with the plain `yoyo apply` still gets sql/ and policies/ loaded.

`goldleaves migrate` does not come through here. It loads in every run, also when no migration was pending.
"""

from pathlib import Path

from yoyo import step

from api.release import Tree, load

__transactional__ = False  # the load is a transaction of its own

step(lambda connection: load(connection, Tree.read(Path(__file__).resolve().parent.parent)))
