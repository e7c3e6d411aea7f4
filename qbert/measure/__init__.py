"""The cells of a run, and what is measured of each: latency, capacity, accuracy, footprint, limit."""
