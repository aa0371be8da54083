"""Where ids come from: uniform draws, Zipf's law, stack distances, data sets."""
