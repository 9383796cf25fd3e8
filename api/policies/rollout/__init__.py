"""Rolling out `policies/`: plan what would change, apply it, verify that it stayed so, and go back.

`plan` finds out by doing it in a transaction that is taken back, `apply` does it, `history` knows the releases,
`paperwork` writes plan.json, conflicts.json and the `.new` files, `report` prints, `commands` are what a DBA types.
"""
