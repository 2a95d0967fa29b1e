"""What a cell is: parameters and one step.

`lib.recurrence` owns time. Methods of a step get every tensor they need as an argument (``theta``
holds the constrained point-wise parameters) and read at most fixed numbers such as ``dt`` from
``self``, so that the same code runs for one seed, for many seeds at once, eagerly and compiled.

Signals, weights ``[post, pre]`` and biases of one step, with ``H`` hidden units and ``I`` features:

    g_t = P x_t + b                     input_weights(), for all steps at once, before the loop
    a_t = (W_1 s_1, W_2 s_2, ...)       recurrent_weights() times presynaptic(state, theta)
    state_t = update(state_{t-1}, a_t, g_t, theta)
"""

import math

import torch
from torch import nn

from lib import checks

INITIALISATIONS = ("balanced", "notes")


class Cell(nn.Module):
    """Base of all cells, of I = ``input_size`` features a step and H = ``hidden_size`` units.

    ``sequence_length`` T of the task sets the longest initial time constant; ``generator`` is the
    source of all random numbers of the initialisation; ``options`` are those of ``defaults``.
    """

    name: str
    label: str  # the name, unless the class says otherwise
    # how W is made: "baseline", "free", "sign" (constrained), "reversal" (potentials)
    weights = "baseline"
    stp = False
    variables: tuple[str, ...] = ()  # recorded variables, each (batch, time, hidden)
    defaults: dict = {}  # noqa: RUF012  options and their default values
    # parameter -> "gate", "drive", "input" or "plasticity"; those not named count as drive
    roles: dict = {}  # noqa: RUF012
    z_max = None  # largest value of the gate z, None without a gate
    # whether a and g enter update only as their sum; then grad a is read off grad g
    additive = False
    excitatory = None  # number of excitatory units under Dale's law, which come first
    # None, or a method (state, saved): what `observe` returns, from tensors that `saved` has kept
    observe_saved = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)

        def place(*methods):  # of the first class, in the order of inheritance, that has one
            return next(i for i, kind in enumerate(cls.__mro__) if vars(kind).keys() & {*methods})

        if place("update", "presynaptic", "_plasticity") < place("pullback"):
            # A derivative by hand belongs to the step it was written for; a changed step is
            # differentiated automatically.
            cls.saved, cls.pullback = Cell.saved, Cell.pullback
            cls.additive = vars(cls).get("additive", False)
        if cls.observe_saved and place("observe", "saved") < place("observe_saved"):
            cls.observe_saved = None

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
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.sequence_length = sequence_length
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
        """The options that differ from the defaults: what enters a run's key. A whole number for a
        default that is a float becomes one, so that 1 and 1.0 are one key.
        """
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
        if low is None:
            high = 1 / math.sqrt(self.hidden_size)
            low = -high
        return nn.Parameter(torch.rand(*shape, generator=generator) * (high - low) + low)

    def forward(self):
        """All that a pass needs of the parameters, once: input and recurrent weights, theta."""
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
        """Derivative of one step, from the adjoint of ``state``: the adjoints of the previous state
        (NamedTuple), of a (tuple), of g, and of theta (dict, each (batch, H)).

        This one differentiates `update` and `presynaptic` and serves every cell; a family may
        override it, with `saved`, where the derivative by hand is faster. ``transpose`` maps the
        adjoint of a to that of the presynaptic signals.
        """
        *a, g = saved
        _, pull_update = torch.func.vjp(self.update, previous, tuple(a), g, theta)
        _, pull_presynaptic = torch.func.vjp(self.presynaptic, previous, theta)
        direct, grad_a, grad_g, grad_theta = pull_update(adjoint)
        through, through_theta = pull_presynaptic(transpose(grad_a))
        grad_previous = type(previous)(*(x + y for x, y in zip(direct, through, strict=True)))
        grad_theta = {name: value + through_theta[name] for name, value in grad_theta.items()}
        return grad_previous, grad_a, grad_g, grad_theta

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

    def parameters_by_role(self):
        """Number of trainable parameters for each role (`roles`)."""
        count = dict.fromkeys(("gate", "drive", "input", "plasticity"), 0)
        for name, parameter in self.named_parameters():
            count[self.roles.get(name, "drive")] += parameter.numel()
        return count

    @property
    def signs(self):
        """Dale sign of each presynaptic unit (H,), None without Dale's law."""
        if self.excitatory is None:
            return None
        return torch.where(torch.arange(self.hidden_size) < self.excitatory, 1.0, -1.0)
