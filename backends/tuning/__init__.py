"""Drives searches over a session, measures service times and watts."""
