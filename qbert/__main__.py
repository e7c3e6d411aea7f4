"""Run the command line as `python -m qbert`."""

from qbert.cli import main
from qbert.system.worker import end_with_parent

end_with_parent()
main()
