"""Rows on disk, numbers with intervals and a verdict, the report, the figures."""
