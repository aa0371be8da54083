"""Is the SLA met at a rate, and which is the highest rate that meets it?"""
