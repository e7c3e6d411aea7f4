"""Saved runs: read, compared, and shown as tables and as a page. Nothing here needs torch."""
