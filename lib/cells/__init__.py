"""The recurrent cells: parameters, constraints, initialisation, and one step; never a loop.

`base` says what a cell is, `baselines` and `conductance` hold the cells, `initialisation` the
policies from which the conductance family starts, `registry` finds cells by name and takes a
user's own. The names below stay: the texts of users' own cells, stored with their runs, use them.
"""
# ruff: noqa: F401

import ast
import inspect
import math
from typing import NamedTuple

import torch
from torch import nn

from lib import datasets
from lib.cells.base import INITIALISATIONS, Cell
from lib.cells.baselines import GRU, RNN, RateState, SimpleGRU
from lib.cells.conductance import (
    CB,
    CBGRU,
    STP,
    ConductanceCell,
    Dale,
    DaleCB,
    PlasticState,
    STPDale,
    STPDaleCB,
    VoltageState,
)
from lib.cells.initialisation import SPREAD
from lib.cells.registry import (
    ALL,
    CELLS,
    DESIGN,
    SOURCES,
    check_cell,
    get,
    matching_hidden_size,
    names,
    parameter_count,
    register,
    register_source,
)

__all__ = [name for name in dir() if not name.startswith("_")]
