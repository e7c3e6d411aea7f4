"""What the operating system, the machine and the terminal are asked: no module here knows a model."""
