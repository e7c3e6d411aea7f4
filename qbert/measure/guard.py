"""The guard of a drop: the drop itself, a look, or what it surely does not exceed."""


def figure(drop: float, at_most: float, by: str) -> float:
    """Return the figure of a drop that is held against its limit.

    `by` is `point` (the drop itself: a look) or `interval` (`at_most`: then it is surely within the limit).
    """
    return max(drop, at_most) if by == "interval" else drop
