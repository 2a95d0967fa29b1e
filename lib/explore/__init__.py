"""What moves in a notebook: explorers of a store, and views of training."""

from lib.explore.board import Board
from lib.explore.choice import WindowControls, lengths
from lib.explore.lesions import LesionExplorer
from lib.explore.live import Live, load_or_run, run_button
from lib.explore.recording import TraceExplorer
from lib.explore.sequence import SequenceExplorer

CurveExplorer = BarExplorer = Board  # what scripts of the first layout call it

__all__ = [
    "Board",
    "LesionExplorer",
    "Live",
    "SequenceExplorer",
    "TraceExplorer",
    "WindowControls",
    "lengths",
    "load_or_run",
    "run_button",
]
