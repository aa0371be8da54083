"""Latency models of devices: measured profiles, and what is derived from them."""
