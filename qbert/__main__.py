"""Run the command line as `python -m qbert`."""

from qbert.cli import main

main()
