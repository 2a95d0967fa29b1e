"""The conductance family: CB, CB-GRU, Dale and DaleCB, without and with short-term plasticity."""

from typing import NamedTuple

import torch
from torch import nn

from lib import checks
from lib.cells import initialisation as initial
from lib.cells.base import Cell
from lib.cells.registry import register

WORDS = {  # options that are words
    "drive": ("dt", "z"),
    "gate_bias": ("chrono", "open"),
    "input_gate": ("positive", "free"),
    "readout": ("excitatory", "all"),
}
FRACTIONS = ("dt", "z_max", "excitatory_fraction", "stp_dt")  # numbers above 0 and at most 1


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
    own_defaults: dict = {}  # noqa: RUF012  options that a user's class declares in ``defaults``
    roles = {  # noqa: RUF012
        **dict.fromkeys(("K", "log_K", "b_z"), "gate"),
        **dict.fromkeys(("P", "P_z", "log_P_z"), "input"),
        **dict.fromkeys(("c_x", "c_u", "c_U"), "plasticity"),
    }

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.dale = cls.weights in ("sign", "reversal")
        cls.variables = ("v", "r", "z", "X", "U") if cls.stp else ("v", "r", "z")
        cls.own_defaults = {**cls.own_defaults, **cls.__dict__.get("defaults", {})}
        cls.defaults = {
            "dt": 0.1,
            "drive": "dt",
            "z_max": "dt",
            "gate_bias": "chrono",
            **({"input_gate": "positive"} if cls.positive_P_z else {}),
            **({"conductance_gain": 1.0} if cls.positive_K else {}),
            **({"readout": "excitatory", "excitatory_fraction": 0.5} if cls.dale else {}),
            **({"stp_dt": 1.0} if cls.stp else {}),
            **cls.own_defaults,
        }

    def __init__(self, *sizes, **options):
        if options.get("z_max", self.defaults["z_max"]) == "dt":
            options["z_max"] = options.get("dt", self.defaults["dt"])
        super().__init__(*sizes, **options)

    @classmethod
    def check_options(cls, hidden_size, options):
        super().check_options(hidden_size, options)
        for option, value in options.items():
            if option in WORDS:
                checks.one_of(option, value, WORDS[option])
            elif option == "conductance_gain":
                checks.number(option, value)
            elif option in FRACTIONS and (option, value) != ("z_max", "dt"):
                checks.number(option, value, at_most=1)
        if not cls.dale:
            return
        fraction = options.get("excitatory_fraction", cls.defaults["excitatory_fraction"])
        excitatory = round(fraction * hidden_size)
        if not 1 <= excitatory <= hidden_size - 1:
            kind = "excitatory" if excitatory < 1 else "inhibitory"
            raise ValueError(
                f"excitatory_fraction {fraction} of {hidden_size} hidden units leaves no {kind} "
                "unit, but Dale's law needs at least one of each; choose a fraction nearer to 0.5 "
                "or more units."
            )

    @classmethod
    def check_initialisation(cls, initialisation, options):
        super().check_initialisation(initialisation, options)
        gain = options.get("conductance_gain", 1)
        if initialisation == "notes" and gain != 1:
            raise ValueError(
                f"conductance_gain is {gain!r}, but belongs to the balanced initialisation; leave "
                "it out, or choose initialisation balanced."
            )

    @classmethod
    def changed_options(cls, options):
        changed = super().changed_options(options)
        dt = changed.get("dt", cls.defaults["dt"])
        if "z_max" in changed and cls.defaults["z_max"] == "dt" and changed["z_max"] == dt:
            del changed["z_max"]
        elif type(changed.get("z_max")) is int:
            changed["z_max"] = float(changed["z_max"])
        return changed

    @property
    def excitatory(self):
        return round(self.excitatory_fraction * self.hidden_size) if self.dale else None

    @property
    def readout_size(self):
        return self.excitatory if self.dale and self.readout != "all" else self.hidden_size

    def initialise(self, initialisation, generator):
        initial.draw_common(self, generator)
        (initial.notes if initialisation == "notes" else initial.balanced)(self, generator)

    def holding(self, logarithm):
        """Parameter that holds a positive weight of the given logarithm."""
        return nn.Parameter(self.held(logarithm))

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
        gate = torch.sigmoid(self._products(a, g)[0])
        return ConductanceCell.observe_saved(self, state, (gate,))

    def observe_saved(self, state, saved):
        return {"r": torch.sigmoid(state.v), "z": self.z_max * saved[0], **state._asdict()}

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
