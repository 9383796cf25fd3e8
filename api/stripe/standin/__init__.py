"""A stand-in for Stripe: a server that speaks its HTTP protocol to the real SDK, for tests and for the demo.

It has what Goldleaves uses: checkout and portal, meters and their events, invoice items, and the objects that webhooks
tell of. It refuses what Stripe refuses, a parameter that nobody knows among it. Where localstripe is installed, what it
does not have itself is handed on to that. It fails when it is told to: see control.py.

`python -m api.stripe.standin --port 12111`. Nothing that runs in production imports it.
"""
