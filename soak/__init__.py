"""Everything at once, for minutes, while each part of the stack is killed again and again; then the books are compared.

What the load was told was accepted has to be what events, rollups and summaries say, to the last unit. `make soak`.
"""
