"""What tables there are, which schedules exist, and which looks up which table."""
