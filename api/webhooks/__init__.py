"""Messages to the provider's application: signed as Standard Webhooks are, and sent until they arrive.

What is sent is written by SQL, in the transaction of what it tells of: see sql/notifications/.
"""
