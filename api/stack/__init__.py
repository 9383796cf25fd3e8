"""The embedded stack: Postgres, PostgREST and the sidecar as local processes, for trying, developing and testing.

In production each of them is a container or a service of its own. Only the command, the demo and the tests import this.
"""
