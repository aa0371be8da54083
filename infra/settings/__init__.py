"""Flags and files become one frozen, checked RunConfig."""
