"""Jagged ids -> pooled rows: the tables in memory and the operators that read them."""
