"""What a short run tells of the long one: service times, resampled and walked in virtual time."""
