"""Run the command line as `python -m qbert`."""

from qbert.children import end_with_parent
from qbert.cli import main

end_with_parent()
main()
