"""`goldleaves dev`: the stack in the foreground, and what is saved in the project is live a moment later.

`sources` tells what changed on disk, `database` brings SQL and migrations to the running database, `sidecar` swaps the
running sidecar for one with the new code that waited in `standby`, `session` puts them together and says what it did.
Nothing is imported here: a standby must not know our code before it was saved.
"""
