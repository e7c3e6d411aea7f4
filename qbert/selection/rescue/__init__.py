"""Find the few layers whose int8 costs the answers, and keep those in float until the guard holds: `qbert rescue`."""

from qbert.selection.rescue.run import REPORT, Rescued, rescue

__all__ = ["REPORT", "Rescued", "rescue"]
