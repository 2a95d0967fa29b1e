"""The recurrent cells: parameters, constraints, initialisation, and one step; never a loop.

A cell says how one step works; `lib.recurrence` owns time. Methods of a step get every tensor they
need as an argument (``theta`` holds the constrained point-wise parameters) and read at most fixed
numbers such as ``dt`` from ``self``, so that the same code runs for one seed, for many seeds at
once, eagerly and compiled.

Signals, weights ``[post, pre]`` and biases of one step, with ``H`` hidden units and ``I`` features:

    g_t = P x_t + b                     input_weights(), for all steps at once, before the loop
    a_t = (W_1 s_1, W_2 s_2, ...)       recurrent_weights() times presynaptic(state, theta)
    state_t = update(state_{t-1}, a_t, g_t, theta)
"""

import ast
import inspect
import math
from typing import NamedTuple

import torch
from torch import nn

from lib import checks, datasets

CELLS: dict[str, type["Cell"]] = {}
SOURCES: dict[str, str] = {}  # text of the user's own cells, by name; enters the key of their runs


def register(cell):
    """Make a cell class known under ``cell.name``; usable as a decorator. The last registration of
    a name counts.

    Raises
    ------
    ValueError
        The class lacks a name, or takes the name of a built-in cell.
    """
    name = cell.__dict__.get("name")
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(
            f"{cell.__name__}.name is {name!r}, but a cell needs a name that is a plain word; add name = 'my_cell'."
        )
    if cell.__module__ != __name__:
        if name in CELLS and CELLS[name].__module__ == __name__:
            raise ValueError(
                f"The name {name!r} belongs to a built-in cell; choose another name for {cell.__name__}."
            )
        if cell.__module__ != "user_cells":
            text = _text(cell)
            SOURCES[name] = text if text.startswith("@") else f"{text}\nregister({cell.__name__})\n"
    CELLS[name] = cell
    return cell


def _text(cell):
    """Source of a class. One typed into a notebook has no file, but its functions know the text of
    their notebook cell.
    """
    try:
        return inspect.getsource(cell)
    except OSError:
        lines, _ = inspect.findsource(
            next(value for value in vars(cell).values() if inspect.isfunction(value))
        )
        classes = (
            node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.ClassDef)
        )
        node = next(node for node in classes if node.name == cell.__name__)
        first = min(part.lineno for part in (node, *node.decorator_list))
        return "".join(lines[first - 1 : node.end_lineno]).rstrip() + "\n"


def register_source(text):
    """Run the text of a user's file, in which cells (and data sets) register themselves; ``torch``,
    ``nn``, ``NamedTuple`` and this module's public names are at hand.

    Returns
    -------
    list of str
        Names of the cells the text registered.

    Raises
    ------
    ValueError
        The text does not run, or registers nothing.
    """
    before = {**CELLS, **datasets.DATASETS}
    public = {name: value for name, value in globals().items() if not name.startswith("_")}
    try:
        exec(compile(text, "<user's cells>", "exec"), {**public, "__name__": "user_cells"})
    except Exception as error:
        raise ValueError(
            f"The file of the user's own cells does not run: {type(error).__name__}: {error}."
        ) from error
    found, sets = (
        [name for name, value in known.items() if before.get(name) is not value]
        for known in (CELLS, datasets.DATASETS)
    )
    if not found + sets:
        raise ValueError(
            "The file of the user's own cells registers no cell; put @register above the class."
        )
    SOURCES.update(dict.fromkeys(found, text))
    datasets.SOURCES.update(dict.fromkeys(sets, text))
    return found


def get(name):
    """Class of a registered cell.

    Raises
    ------
    ValueError
        The name is unknown; the sentence lists the known ones.
    """
    if name not in CELLS:
        raise ValueError(f"Unknown cell {name!r}; known cells are {', '.join(CELLS)}.")
    return CELLS[name]


ALL = ("rnn", "simple_gru", "gru", "cb", "cb_gru", "dale_cb", "stp", "stp_dale", "stp_dale_cb")
DESIGN = (
    "cb",
    "dale",
    "dale_cb",
    "stp",
    "stp_dale",
    "stp_dale_cb",
)  # W (free, sign, reversal) x STP (no, yes)


def names(selection="all"):
    """Cell names of a selection: ``"all"`` (the nine of the notes), ``"design"`` (W x STP), or
    names joined by commas.

    Raises
    ------
    ValueError
        A name is unknown or stands twice.
    """
    groups = {"all": ALL, "design": DESIGN}
    chosen = [
        name for part in selection.split(",") for name in groups.get(part.strip(), (part.strip(),))
    ]
    for name in chosen:
        get(name)
        if chosen.count(name) > 1:
            raise ValueError(
                f"Cell {name!r} is named {chosen.count(name)} times; name each cell once."
            )
    return chosen


def check_cell(spec):
    """Refuse a `lib.config.CellSpec` that cannot be built, before any work starts.

    Raises
    ------
    ValueError
        Unknown cell, initialisation or option, a hidden size that is no positive integer, or a
        value out of range.
    """
    cell = get(spec.name)
    checks.whole("hidden_size", spec.hidden_size, 1)
    cell.check_options(spec.hidden_size, spec.options)
    cell.check_initialisation(spec.initialisation, spec.options)


INITIALISATIONS = ("balanced", "notes")


class Cell(nn.Module):
    """Base of all cells.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per step I, hidden units H.
    sequence_length : int
        Steps T of the task; sets the longest initial time constant.
    initialisation : {"balanced", "notes"}
    generator : torch.Generator
        Source of all random numbers of the initialisation.
    **options
        What ``defaults`` lists.
    """

    name: str
    label: str
    # how W is made: "baseline", "free", "sign" (constrained), "reversal" (potentials)
    weights = "baseline"
    stp = False
    variables: tuple[str, ...] = ()  # recorded variables, each (batch, time, hidden)
    defaults: dict = {}  # noqa: RUF012  options and their default values
    roles: dict = {}  # noqa: RUF012  parameter name -> "gate", "drive", "input" or "plasticity"; others count as drive
    z_max = None  # largest value of the gate z, None without a gate
    additive = (
        False  # whether a and g enter update only as their sum; then grad a is read off grad g
    )
    excitatory = None  # number of excitatory units under Dale's law, which come first

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = cls.__dict__
        if (
            "update" in own or "presynaptic" in own or "_plasticity" in own
        ) and "pullback" not in own:
            # A derivative by hand belongs to the step it was written for; a changed step is
            # differentiated automatically.
            cls.saved, cls.pullback = Cell.saved, Cell.pullback
            cls.additive = own.get("additive", False)

    def __init__(
        self,
        input_size,
        hidden_size,
        sequence_length=256,
        initialisation="balanced",
        generator=None,
        **options,
    ):
        super().__init__()
        self.check_options(hidden_size, options)
        self.check_initialisation(initialisation, options)
        self.input_size, self.hidden_size, self.sequence_length = (
            input_size,
            hidden_size,
            sequence_length,
        )
        for option, value in {**self.defaults, **options}.items():
            setattr(self, option, value)
        self.initialise(initialisation, generator)

    @classmethod
    def check_options(cls, hidden_size, options):
        """Raise ValueError for an option this cell does not have."""
        for option in options:
            if option not in cls.defaults:
                has = ", ".join(cls.defaults) or "none"
                raise ValueError(
                    f"Cell {cls.name!r} has no option {option!r}; its options are: {has}."
                )

    @classmethod
    def check_initialisation(cls, initialisation, options):
        """Raise ValueError for a policy that is unknown, or in which an option has no meaning."""
        checks.one_of("initialisation", initialisation, INITIALISATIONS)

    @classmethod
    def changed_options(cls, options):
        """The options that differ from the defaults, numbers as floats: what enters a run's key."""
        changed = {}
        for option, value in options.items():
            default = cls.defaults.get(option)
            if type(value) is int and isinstance(default, float):
                value = float(value)
            if value != default or isinstance(value, bool):
                changed[option] = value
        return changed

    def initialise(self, initialisation, generator):
        """Create the parameters (`uniform` makes one)."""
        raise TypeError(f"{type(self).__name__} must define initialise().")

    def uniform(self, *shape, low=None, high=None, generator=None):
        """New parameter, uniform in [low, high], by default within +-1/sqrt(H)."""
        bound = 1 / math.sqrt(self.hidden_size)
        low, high = (-bound, bound) if low is None else (low, high)
        return nn.Parameter(torch.rand(*shape, generator=generator) * (high - low) + low)

    def forward(self):
        """All that a pass needs of the parameters: input weights, recurrent weights, theta. One
        call a pass.
        """
        return self.input_weights(), self.recurrent_weights(), self.pointwise()

    def input_weights(self):
        """Matrix (G, I) and bias (G,) that project the inputs of all steps to g."""
        raise TypeError(f"{type(self).__name__} must define input_weights().")

    def recurrent_weights(self):
        """Tuple with one matrix for each presynaptic signal."""
        raise TypeError(f"{type(self).__name__} must define recurrent_weights().")

    def pointwise(self):
        """theta: the other constrained parameters of a step, a dict of name to (H,)."""
        return {}

    def initial_state(self, batch, theta):
        """State before the first step, a NamedTuple of (batch, H)."""
        raise TypeError(f"{type(self).__name__} must define initial_state().")

    def presynaptic(self, state, theta):
        """Tuple of the signals (batch, H) that the recurrent matrices multiply."""
        raise TypeError(f"{type(self).__name__} must define presynaptic().")

    def update(self, state, a, g, theta):
        """Next state from the recurrent products a (tuple) and the projected input g (batch, G)."""
        raise TypeError(f"{type(self).__name__} must define update().")

    def saved(self, previous, state, signals, a, g, theta):
        """Tensors of a step, beside its states and signals, that `pullback` needs."""
        return (*a, g)

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        """Derivative of one step: from the adjoint of ``state`` to those of what it was made of.

        This one differentiates `update` and `presynaptic` and serves every cell; a family may
        override it, with `saved`, where the derivative by hand is faster. ``transpose`` maps the
        adjoint of a to that of the presynaptic signals.

        Returns
        -------
        tuple
            Adjoints of the previous state (NamedTuple), of a (tuple), of g, and of theta (dict,
            each (batch, H)).
        """
        *a, g = saved
        _, pull_update = torch.func.vjp(self.update, previous, tuple(a), g, theta)
        _, pull_presynaptic = torch.func.vjp(self.presynaptic, previous, theta)
        direct, grad_a, grad_g, grad_theta = pull_update(adjoint)
        through, through_theta = pull_presynaptic(transpose(grad_a))
        grad_previous = type(previous)(*(x + y for x, y in zip(direct, through, strict=True)))
        return (
            grad_previous,
            grad_a,
            grad_g,
            {name: value + through_theta[name] for name, value in grad_theta.items()},
        )

    def observe(self, previous, state, a, g, theta):
        """Recorded variables of a step: mapping of name to (batch, H)."""
        return state._asdict()

    def output(self, state):
        """What the read-out reads, (batch, n)."""
        return state[0]

    @property
    def readout_size(self):
        """Units that the read-out reads: the excitatory ones under Dale's law, else all."""
        return self.excitatory or self.hidden_size

    def constrained(self):
        """Parameters as the equations use them, by the symbols of the equations."""
        return dict(self.named_parameters())

    @property
    def signs(self):
        """Dale sign of each presynaptic unit (H,), None without Dale's law."""
        if self.excitatory is None:
            return None
        return torch.where(torch.arange(self.hidden_size) < self.excitatory, 1.0, -1.0)


class RateState(NamedTuple):
    """State of the rate cells, h or r: (batch, H)."""

    h: torch.Tensor


@register
class RNN(Cell):
    """h_t = tanh(W h_{t-1} + P x_t + b). Equals torch.nn.RNN with b = b_ih + b_hh (Elman 1990)."""

    name, label, variables, additive = "rnn", "vanilla RNN", ("h",), True
    roles = {"P": "input"}  # noqa: RUF012

    def initialise(self, initialisation, generator):
        H, I = self.hidden_size, self.input_size  # noqa: E741
        self.W = self.uniform(H, H, generator=generator)
        self.P = self.uniform(H, I, generator=generator)
        self.b = self.uniform(H, generator=generator)

    def input_weights(self):
        return self.P, self.b

    def recurrent_weights(self):
        return (self.W,)

    def initial_state(self, batch, theta):
        return RateState(self.W.new_zeros(batch, self.hidden_size))

    def presynaptic(self, state, theta):
        return (state.h,)

    def update(self, state, a, g, theta):
        return RateState(torch.tanh(a[0] + g))

    def saved(self, previous, state, signals, a, g, theta):
        return ()

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        grad = (1 - state.h * state.h) * adjoint.h
        return RateState(*transpose((grad,))), (grad,), grad, {}


@register
class SimpleGRU(RNN):
    """z_t = sigma(W_z r + P_z x_t + b_z); r_t = (1 - z_t) r + z_t sigma(W r + P x_t + b), with r =
    r_{t-1}.
    """

    name, label, variables, z_max = "simple_gru", "simple GRU", ("r", "z"), 1.0
    roles = {"W_z": "gate", "b_z": "gate", "P_z": "input", "P": "input"}  # noqa: RUF012

    def initialise(self, initialisation, generator):
        H, I = self.hidden_size, self.input_size  # noqa: E741
        self.W_z = self.uniform(H, H, generator=generator)
        self.P_z = self.uniform(H, I, generator=generator)
        self.b_z = self.uniform(H, generator=generator)
        super().initialise(initialisation, generator)

    def input_weights(self):
        return torch.cat((self.P_z, self.P)), torch.cat((self.b_z, self.b))

    def recurrent_weights(self):
        return (torch.cat((self.W_z, self.W)),)

    def update(self, state, a, g, theta):
        gate, drive = (a[0] + g).chunk(2, -1)
        z = torch.sigmoid(gate)
        return RateState((1 - z) * state.h + z * torch.sigmoid(drive))

    def saved(self, previous, state, signals, a, g, theta):
        return torch.sigmoid(a[0] + g).chunk(2, -1)

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        z, target = saved
        slope = adjoint.h * z
        grad = torch.cat(
            (slope * (1 - z) * (target - previous.h), slope * target * (1 - target)), -1
        )
        return RateState(adjoint.h - slope + transpose((grad,))[0]), (grad,), grad, {}

    def observe(self, previous, state, a, g, theta):
        return {"r": state.h, "z": torch.sigmoid((a[0] + g).chunk(2, -1)[0])}


@register
class GRU(Cell):
    """torch.nn.GRU (Cho et al. 2014; reset gate applied after the matrix product), with
    torch.nn.GRUCell's names and gate order.

    torch's update gate multiplies the OLD state; the recorded z is the fraction replaced, one minus
    torch's gate.
    """

    name, label, variables, z_max = "gru", "full GRU", ("h", "z"), 1.0

    def initialise(self, initialisation, generator):
        H, I = self.hidden_size, self.input_size  # noqa: E741
        self.weight_ih = self.uniform(3 * H, I, generator=generator)
        self.weight_hh = self.uniform(3 * H, H, generator=generator)
        self.bias_ih = self.uniform(3 * H, generator=generator)
        self.bias_hh = self.uniform(3 * H, generator=generator)

    def input_weights(self):
        # The recurrent biases of both gates simply add to g; only the candidate's is scaled by the
        # reset gate.
        gates, candidate = self.bias_hh.split((2 * self.hidden_size, self.hidden_size))
        return self.weight_ih, self.bias_ih + torch.cat((gates, torch.zeros_like(candidate)))

    def recurrent_weights(self):
        return (self.weight_hh,)

    def pointwise(self):
        return {"bias_hn": self.bias_hh[2 * self.hidden_size :]}

    def initial_state(self, batch, theta):
        return RateState(self.weight_hh.new_zeros(batch, self.hidden_size))

    def presynaptic(self, state, theta):
        return (state.h,)

    def update(self, state, a, g, theta):
        a_r, a_u, a_n = a[0].chunk(3, -1)
        g_r, g_u, g_n = g.chunk(3, -1)
        u = torch.sigmoid(a_u + g_u)
        n = torch.tanh(g_n + torch.sigmoid(a_r + g_r) * (a_n + theta["bias_hn"]))
        return RateState((1 - u) * n + u * state.h)

    def saved(self, previous, state, signals, a, g, theta):
        r, u = torch.sigmoid((a[0] + g)[..., : 2 * self.hidden_size]).chunk(2, -1)
        scaled = a[0].chunk(3, -1)[2] + theta["bias_hn"]
        return r, u, scaled, torch.tanh(g.chunk(3, -1)[2] + r * scaled)

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        r, u, scaled, n = saved
        grad_n = adjoint.h * (1 - u) * (1 - n * n)
        gates = torch.cat(
            (grad_n * scaled * r * (1 - r), adjoint.h * (previous.h - n) * u * (1 - u)), -1
        )
        grad_a, grad_g = torch.cat((gates, grad_n * r), -1), torch.cat((gates, grad_n), -1)
        return (
            RateState(adjoint.h * u + transpose((grad_a,))[0]),
            (grad_a,),
            grad_g,
            {"bias_hn": grad_n * r},
        )

    def observe(self, previous, state, a, g, theta):
        return {"h": state.h, "z": 1 - torch.sigmoid(a[0].chunk(3, -1)[1] + g.chunk(3, -1)[1])}

    def constrained(self):
        return {
            "W": self.weight_hh[2 * self.hidden_size :],
            "P": self.weight_ih[2 * self.hidden_size :],
            **dict(self.named_parameters()),
        }


class VoltageState(NamedTuple):
    """Membrane voltage v, (batch, H)."""

    v: torch.Tensor


class PlasticState(NamedTuple):
    """Voltage v, fraction of available resources X, release probability U; each (batch, H)."""

    v: torch.Tensor
    X: torch.Tensor
    U: torch.Tensor


class ConductanceCell(Cell):
    """The conductance family; W q_t + P x_t + b is the drive.

        r = sigma(v_{t-1})
        z_t = z_max sigma(K r + P_z x_t + b_z)
        v_t = (1 - z_t) v_{t-1} + dt (W q_t + P x_t + b)        drive = "dt"
        v_t = (1 - z_t) v_{t-1} + z_t (W q_t + P x_t + b)       drive = "z"
        q_t = r without, U_t X_t r with short-term plasticity (which scales W only, never K)

    Tsodyks-Markram plasticity, one X and U a presynaptic unit (U, X, r of t - 1; d = stp_dt):

        X_t = z_x + (1 - z_x) X - d U X r                        X_0 = 1
        U_t = U_cap z_u + (1 - z_u) U + d U_cap (1 - U) r        U_0 = U_cap
        z_x, z_u = 0.001 + 0.099 sigma(c_x), sigma(c_u);  U_cap = 0.9 sigma(c_U)

    Class attributes choose the member: ``weights`` says how W is made ("free"; "sign": s_j
    exp(log_W); "reversal": v_e (K + C) and v_i (K + C) column blocks), ``stp`` adds plasticity,
    ``positive_K`` and ``positive_P_z`` hold K and P_z as logarithms.

    Options, each a change of one thing; the defaults are the notes' equations:

    dt : float
        In (0, 1]; 0.1.
    drive : {"dt", "z"}
        With "z" the voltage relaxes to its drive at the rate of its own conductance, as
        C dv/dt = -g (v - v_inf) does.
    z_max : float
        Largest gate, in (0, 1]; "dt" stands for the value of dt.
    gate_bias : {"chrono", "open"}
        b_z as the initialisation gives it, or such that the gate starts at z_max / 2.
    input_gate : {"positive", "free"}
        P_z = exp(log_P_z), or of any sign. Where P_z is positive.
    conductance_gain : float
        Sum of a row of K at balanced initialisation; 1. Where K is positive.
    readout : {"excitatory", "all"}
        Units that are read out. Under Dale's law.
    excitatory_fraction : float
        Fraction of excitatory units; 0.5. Under Dale's law.
    stp_dt : float
        d, in (0, 1]; 1. With plasticity.
    """

    positive_K = positive_P_z = additive = True
    roles = {  # noqa: RUF012
        **dict.fromkeys(("K", "log_K", "b_z"), "gate"),
        **dict.fromkeys(("P", "P_z", "log_P_z"), "input"),
        **dict.fromkeys(("c_x", "c_u", "c_U"), "plasticity"),
    }

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.dale = cls.weights in ("sign", "reversal")
        cls.variables = ("v", "r", "z", "X", "U") if cls.stp else ("v", "r", "z")
        cls.defaults = {
            "dt": 0.1,
            "drive": "dt",
            "z_max": "dt",
            "gate_bias": "chrono",
            **({"input_gate": "positive"} if cls.positive_P_z else {}),
            **({"conductance_gain": 1.0} if cls.positive_K else {}),
            **({"readout": "excitatory", "excitatory_fraction": 0.5} if cls.dale else {}),
            **({"stp_dt": 1.0} if cls.stp else {}),
            **cls.__dict__.get("defaults", {}),
        }

    @classmethod
    def check_options(cls, hidden_size, options):
        super().check_options(hidden_size, options)
        for option, value in options.items():
            if option in WORDS:
                checks.one_of(option, value, WORDS[option])
            elif option == "conductance_gain":
                checks.number(option, value)
            elif option in ("dt", "excitatory_fraction", "stp_dt"):
                checks.number(option, value, at_most=1)
            elif option == "z_max" and value != "dt":
                checks.number(option, value, at_most=1)
        if cls.dale:
            fraction = options.get("excitatory_fraction", cls.defaults["excitatory_fraction"])
            excitatory = round(fraction * hidden_size)
            kind = "excitatory" if excitatory < 1 else "inhibitory"
            if not 1 <= excitatory <= hidden_size - 1:
                raise ValueError(
                    f"excitatory_fraction {fraction} of {hidden_size} hidden units leaves no {kind} "
                    "unit, but Dale's law needs at least one of each; choose a fraction nearer to "
                    "0.5 or more units."
                )

    @classmethod
    def check_initialisation(cls, initialisation, options):
        super().check_initialisation(initialisation, options)
        if initialisation == "notes" and options.get("conductance_gain", 1) != 1:
            raise ValueError(
                f"conductance_gain is {options['conductance_gain']!r}, but belongs to the balanced "
                "initialisation; leave it out, or choose initialisation balanced."
            )

    @classmethod
    def changed_options(cls, options):
        changed = super().changed_options(options)
        z_max = changed.pop("z_max", "dt")
        if z_max not in ("dt", changed.get("dt", cls.defaults["dt"])):
            changed["z_max"] = float(z_max) if type(z_max) is int else z_max
        return changed

    @property
    def excitatory(self):
        return round(self.excitatory_fraction * self.hidden_size) if self.dale else None

    @property
    def readout_size(self):
        return self.excitatory if self.dale and self.readout != "all" else self.hidden_size

    def initialise(self, initialisation, generator):
        """Policies "notes" and "balanced"; the latter starts every gate unsaturated and every cell
        from an equal drive.

        Balanced: K and C log-normal (sigma 0.5) with rows that sum to 1 (those of K to
        conductance_gain); W with the second moment 1/(3H) of the free cells' uniform weights,
        excitation and inhibition equal in the mean (Rajan and Abbott 2006), and scaled up under
        plasticity by the efficacy U X at r = 1/2; P_z log-normal with rows that sum to 1.

        b_z, chrono (Tallec and Ollivier 2018): z starts at 1/tau, so that z_max sigma(b_z) = 1/tau
        and b_z = -ln(z_max tau - 1), with tau log-spaced from 2/dt to max(T, 4/dt) steps, in
        excitatory and inhibitory units alike. With another z_max the time constants stay, and only
        how far the gate can open beyond them changes; below dt, which puts 2/dt out of the gate's
        reach, z_max takes the place of dt. "open": b_z = 0. In both the mean of K r at r = 1/2 is
        taken off.

        The same random numbers are drawn whatever the options, so that cells are paired.
        """
        if self.z_max == "dt":
            self.z_max = self.dt
        H, I, balanced = self.hidden_size, self.input_size, initialisation == "balanced"  # noqa: E741

        def logarithm(*shape, mean):  # of a positive weight
            if balanced:
                normal = torch.randn(*shape, generator=generator)
                return normal * SPREAD + math.log(mean) - SPREAD**2 / 2
            return self.uniform(*shape, low=0, high=1, generator=generator).data

        def holding(logarithm):
            return nn.Parameter(self.held(logarithm))

        self.P = self.uniform(H, I, generator=generator)
        self.b = self.uniform(H, generator=generator)
        if self.stp:
            self.c_x, self.c_u, self.c_U = (
                self.uniform(H, low=0, high=1, generator=generator) for _ in range(3)
            )
        if self.positive_K:
            self.log_K = holding(logarithm(H, H, mean=self.conductance_gain / H))
        else:
            self.K = self.uniform(H, H, generator=generator)
        if self.positive_P_z:
            log_P_z = logarithm(H, I, mean=1 / I)
            if self.input_gate == "positive":
                self.log_P_z = holding(log_P_z)
            else:
                # The same random numbers, made uniform in (0, 1) by their distribution function.
                number = log_P_z
                if balanced:
                    normal = (number - math.log(1 / I) + SPREAD**2 / 2) / SPREAD
                    number = torch.special.ndtr(normal)
                self.P_z = nn.Parameter((2 * number - 1) / math.sqrt(H))
        else:
            self.P_z = self.uniform(H, I, generator=generator)
        # Expected second moment of each kind of W is 1/(3H) before the correction for efficacy.
        gain = 1 / self._efficacy() if self.stp and balanced else 1.0
        f = self.excitatory / H if self.dale else 0.5
        column = {"e": math.sqrt((1 - f) / f), "i": math.sqrt(f / (1 - f))}
        if self.weights == "free":
            self.W = nn.Parameter(self.uniform(H, H, generator=generator).data * gain)
        elif self.weights == "sign":
            log_W = logarithm(H, H, mean=gain * math.exp(-(SPREAD**2) / 2) / math.sqrt(3 * H))
            if balanced:
                log_W += torch.where(self.signs > 0, math.log(column["e"]), math.log(column["i"]))
            self.log_W = holding(log_W)
        else:
            self.log_C = holding(logarithm(H, H, mean=1 / H))
            K_sum = self.conductance_gain if balanced else 1.0
            moment = (K_sum**2 + 1) * math.exp(SPREAD**2) + 2 * K_sum  # of H (K + C)
            scale = gain / math.sqrt(3 * H * (moment / H**2))
            for name in column:
                value = math.log(scale * column[name]) if balanced else 1.0
                setattr(self, f"log_v_{name}", holding(torch.tensor(value)))
        self.b_z = self.uniform(H, low=0, high=1, generator=generator)
        if balanced or self.gate_bias == "open":
            with torch.no_grad():
                self.b_z.copy_(self._gate_bias() - self.constrained()["K"].sum(1).mean() / 2)

    def _gate_bias(self):
        """b_z (H,) before K r is taken off."""
        if self.gate_bias == "open":
            return torch.zeros(self.hidden_size)
        step = min(self.dt, self.z_max)
        ends = math.log10(2 / step), math.log10(max(self.sequence_length, 4 / step))
        E = self.excitatory
        groups = (E, self.hidden_size - E) if self.dale else (self.hidden_size,)
        tau = torch.cat([torch.logspace(*ends, n) for n in groups])
        return -torch.log(self.z_max * tau - 1)

    @torch.no_grad()
    def _efficacy(self):
        """Mean steady U X at the rate of v = 0, r = 1/2."""
        theta, r, d = self.pointwise(), 0.5, self.stp_dt
        U = theta["U_cap"] * (theta["z_u"] + d * r) / (theta["z_u"] + d * theta["U_cap"] * r)
        return float((U * theta["z_x"] / (theta["z_x"] + d * U * r)).mean())

    def positive(self, weight):
        """A positive weight from what holds it; another function needs its own `held`."""
        return weight.exp()

    def held(self, logarithm):
        """What holds a positive weight of the given logarithm."""
        return logarithm

    def gate_weights(self):
        """K, (H, H)."""
        return self.positive(self.log_K) if self.positive_K else self.K

    def gate_input_weights(self):
        """P_z, (H, I)."""
        free = not self.positive_P_z or self.input_gate == "free"
        return self.P_z if free else self.positive(self.log_P_z)

    def drive_weights(self, K):
        """W, (H, H)."""
        if self.weights == "free":
            return self.W
        if self.weights == "sign":
            W = self.positive(self.log_W)
            return torch.cat((W[:, : self.excitatory], -W[:, self.excitatory :]), 1)
        E = self.excitatory
        v_e, v_i = self.positive(self.log_v_e), -self.positive(self.log_v_i)
        conductance = K + self.positive(self.log_C)
        return torch.cat((v_e * conductance[:, :E], v_i * conductance[:, E:]), 1)

    def input_weights(self):
        return torch.cat((self.gate_input_weights(), self.P)), torch.cat((self.b_z, self.b))

    def recurrent_weights(self):
        K = self.gate_weights()
        W = self.drive_weights(K)
        return (K, W) if self.stp else (torch.cat((K, W)),)

    def pointwise(self):
        if not self.stp:
            return {}
        low, high = 0.001, 0.1
        return {
            "z_x": low + (high - low) * torch.sigmoid(self.c_x),
            "z_u": low + (high - low) * torch.sigmoid(self.c_u),
            "U_cap": 0.9 * torch.sigmoid(self.c_U),
        }

    def initial_state(self, batch, theta):
        v = self.b.new_zeros(batch, self.hidden_size)
        if not self.stp:
            return VoltageState(v)
        return PlasticState(v, torch.ones_like(v), theta["U_cap"].expand_as(v))

    def _plasticity(self, state, theta):
        r, z_x, z_u, U_cap = torch.sigmoid(state.v), theta["z_x"], theta["z_u"], theta["U_cap"]
        X = z_x + (1 - z_x) * state.X - self.stp_dt * state.U * state.X * r
        U = U_cap * z_u + (1 - z_u) * state.U + self.stp_dt * U_cap * (1 - state.U) * r
        return r, X, U

    def presynaptic(self, state, theta):
        if not self.stp:
            return (torch.sigmoid(state.v),)
        r, X, U = self._plasticity(state, theta)
        return r, U * X * r

    def _products(self, a, g):
        gate, drive = (a if self.stp else a[0].chunk(2, -1)), g.chunk(2, -1)
        return gate[0] + drive[0], gate[1] + drive[1]

    def update(self, state, a, g, theta):
        gate, drive = self._products(a, g)
        z = self.z_max * torch.sigmoid(gate)
        v = (1 - z) * state.v + (z if self.drive == "z" else self.dt) * drive
        return PlasticState(v, *self._plasticity(state, theta)[1:]) if self.stp else VoltageState(v)

    def saved(self, previous, state, signals, a, g, theta):
        return (torch.sigmoid(self._products(a, g)[0]),)

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        gate, r = saved[0], signals[0]
        z = self.z_max * gate
        if self.drive == "z":
            # dv/dgate = z (1 - gate) (drive - v_{t-1}), and z (drive - v_{t-1}) is the step of v.
            grad_gate = (state.v - previous.v) * (1 - gate) * adjoint.v
            grad_drive = z * adjoint.v
        else:
            grad_gate = -self.z_max * previous.v * gate * (1 - gate) * adjoint.v
            grad_drive = self.dt * adjoint.v
        grad_g = torch.cat((grad_gate, grad_drive), -1)
        direct = (1 - z) * adjoint.v
        if not self.stp:
            return VoltageState(direct + r * (1 - r) * transpose((grad_g,))[0]), None, grad_g, {}
        grad_r, grad_q = transpose((grad_gate, grad_drive))
        d, z_x, z_u, U_cap = self.stp_dt, theta["z_x"], theta["z_u"], theta["U_cap"]
        X, U = previous.X, previous.U
        grad_X, grad_U = adjoint.X + grad_q * state.U * r, adjoint.U + grad_q * state.X * r
        grad_r = (
            grad_r + grad_q * state.U * state.X + d * (U_cap * (1 - U) * grad_U - U * X * grad_X)
        )
        grad_previous = PlasticState(
            direct + r * (1 - r) * grad_r,
            (1 - z_x - d * U * r) * grad_X,
            (1 - z_u - d * U_cap * r) * grad_U - d * X * r * grad_X,
        )
        grad_theta = {
            "z_x": (1 - X) * grad_X,
            "z_u": (U_cap - U) * grad_U,
            "U_cap": (z_u + d * (1 - U) * r) * grad_U,
        }
        return grad_previous, None, grad_g, grad_theta

    def observe(self, previous, state, a, g, theta):
        return {
            "r": torch.sigmoid(state.v),
            "z": self.z_max * torch.sigmoid(self._products(a, g)[0]),
            **state._asdict(),
        }

    def output(self, state):
        return state.v[..., : self.readout_size]

    def constrained(self):
        K = self.gate_weights()
        values = {
            "K": K,
            "W": self.drive_weights(K),
            "P": self.P,
            "P_z": self.gate_input_weights(),
            "b": self.b,
            "b_z": self.b_z,
        }
        if self.weights == "reversal":
            values["C"] = self.positive(self.log_C)
            values["v_e"] = self.positive(self.log_v_e)
            values["v_i"] = -self.positive(self.log_v_i)
        return values | self.pointwise()


WORDS = {  # options that are words, and which
    "drive": ("dt", "z"),
    "gate_bias": ("chrono", "open"),
    "input_gate": ("positive", "free"),
    "readout": ("excitatory", "all"),
}
SPREAD = 0.5  # standard deviation of the logarithm of a positive weight at balanced initialisation


@register
class CB(ConductanceCell):
    """K = exp(log_K), W free, P_z = exp(log_P_z)."""

    name, label, weights = "cb", "CB", "free"


@register
class CBGRU(ConductanceCell):
    """K, W and P_z free: no sign constraint anywhere."""

    name, label, weights = "cb_gru", "CB-GRU", "free"
    positive_K = positive_P_z = False


@register
class Dale(ConductanceCell):
    """W = s_j exp(log_W_ij), independent of K. Not in the notes; completes the design W x STP."""

    name, label, weights = "dale", "Dale", "sign"


@register
class DaleCB(ConductanceCell):
    """W from reversal potentials: W[:, :H_E] = v_e (K + C)[:, :H_E], W[:, H_E:] = v_i (K + C)[:,
    H_E:], v_e > 0 > v_i.
    """

    name, label, weights = "dale_cb", "DaleCB", "reversal"


@register
class STP(ConductanceCell):
    """CB with short-term plasticity."""

    name, label, weights, stp = "stp", "STP nonDale", "free", True


@register
class STPDale(ConductanceCell):
    """Dale with short-term plasticity."""

    name, label, weights, stp = "stp_dale", "STP Dale", "sign", True


@register
class STPDaleCB(ConductanceCell):
    """DaleCB with short-term plasticity."""

    name, label, weights, stp = "stp_dale_cb", "STPDaleCB", "reversal", True


def parameter_count(model):
    """Trainable parameters by role.

    Parameters
    ----------
    model : SequenceClassifier
        For one seed.

    Returns
    -------
    dict
        ``gate``, ``drive``, ``input``, ``plasticity``, ``readout`` and ``total``. K counts as gate
        also where the drive shares it.
    """
    return _count(model.cell, model.readout.out_features)


def matching_hidden_size(name, target, input_size, classes, **options):
    """Hidden size at which cell ``name`` with its read-out comes closest to ``target`` trainable
    parameters; the smaller of two equals.
    """

    def total(hidden_size):
        return _count(get(name)(input_size, hidden_size, **options), classes)["total"]

    low, high = (2 if get(name).weights in ("sign", "reversal") else 1), 2
    while total(high) < target:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= target else (low, middle)
    return min((low, high), key=lambda h: abs(total(h) - target))


def _count(cell, classes):
    count = dict.fromkeys(("gate", "drive", "input", "plasticity", "readout"), 0)
    for name, parameter in cell.named_parameters():
        if isinstance(cell, GRU) and name.endswith(
            "_hh"
        ):  # reset and update rows are gate, candidate rows drive
            count["gate"] += parameter.numel() * 2 // 3
            count["drive"] += parameter.numel() // 3
        elif isinstance(cell, GRU):
            count["input" if name == "weight_ih" else "drive"] += parameter.numel()
        else:
            count[cell.roles.get(name, "drive")] += parameter.numel()
    count["readout"] = classes * (cell.readout_size + 1)
    return {**count, "total": sum(count.values())}
