"""One way to refuse a value: a sentence that names it, the rule and the remedy."""

import math
from numbers import Integral, Real


def require(holds, name, value, rule, remedy=""):
    """Raise ValueError "NAME is VALUE, but must be RULE; REMEDY." unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} is {value!r}, but must be {rule}{remedy and '; ' + remedy}.")


def is_whole(value):
    """Whether a value is a whole number, which True is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(name, value, lowest=0, remedy=""):
    """Refuse what is no whole number of at least ``lowest`` (ValueError)."""
    holds = is_whole(value) and value >= lowest
    require(holds, name, value, f"a whole number of at least {lowest}", remedy)


def number(name, value, at_most=math.inf):
    """Refuse what is no finite number above 0 and at most ``at_most`` (ValueError)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    bounded = f"a number above 0 and at most {at_most:g}"
    holds = number and math.isfinite(value) and 0 < value <= at_most
    require(holds, name, value, "a finite number above 0" if at_most == math.inf else bounded)


def one_of(name, value, known, remedy=""):
    """Refuse what is not among the ``known`` values (ValueError)."""
    require(value in known, name, value, f"one of {', '.join(map(str, known))}", remedy)
