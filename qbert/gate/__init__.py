"""`qbert gate`: base against head, side by side in one job."""
