"""`goldleaves policies lint`: known ways in which a database lets tenants see each other, or work as someone else.

A rule is a file of `rules/`: a comment that says what and why, and a query with a row for each finding. `rules` reads
them, `predicates` reads the expressions of policies, `linting` runs the rules, `command` prints what they found.
"""

from api.policies.lint.linting import Exemption, Finding, Report, examine, lint

__all__ = ["Exemption", "Finding", "Report", "examine", "lint"]
