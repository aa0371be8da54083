"""What everyone may import: records, settings, clock, random streams, statistics, results.

It imports no torch.
"""
