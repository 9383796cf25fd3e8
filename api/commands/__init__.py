"""The commands of `goldleaves`, one module for those that need the same of the house. `api.cli` says which is where.

Each module registers its own on `commands`, and is imported when one of them is called: nobody who asks for a token
waits for what migrates databases.
"""
