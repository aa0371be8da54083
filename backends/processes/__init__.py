"""This machine: engine processes, a FIFO for each pool, one event loop."""
