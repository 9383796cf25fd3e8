"""Plain ASGI middlewares, one a module. Their order is the list in api/app.py."""
