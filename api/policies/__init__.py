"""The DBA's tools: what the live database does, what the files of `policies/` would change, and proof of both."""
