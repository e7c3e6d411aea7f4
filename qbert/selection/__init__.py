"""Decisions by documents: judging variants, choosing one, rescuing one that loses too much."""
