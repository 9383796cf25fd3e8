"""Invoices, and previews of them, as people want them: JSON, lines as CSV, and a page to print. SQL makes the document
and says who may see it; here it is only written out.
"""
