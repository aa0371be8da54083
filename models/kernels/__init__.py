"""What is compiled for one CPU core: small MLPs, DIN's attention, DIEN's recurrence."""
