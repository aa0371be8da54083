"""Laws of arrivals, and the readers of files that a load is read from."""
