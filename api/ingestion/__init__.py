"""POST /v1/events: usage from the provider's own backend. Bodies go to Postgres as they came; the rules are there.

`content` says what a body is, `body` reads it, and one of three ways stores it: `group_commit` small ones together,
`lines` NDJSON while it comes, and `endpoint` everything else by itself.
"""
