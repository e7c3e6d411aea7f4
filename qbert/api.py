"""What a notebook and a service call."""
