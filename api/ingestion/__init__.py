"""POST /v1/events: usage from the provider's own backend. Bodies go to Postgres as they came; the rules are there.

`content` says what a body is, `body` reads it, and one of three ways stores it: `endpoint` small ones together, see
`api.group_commit`, and large ones by themselves; `lines` NDJSON while it comes.
"""
