"""muP for whole models: the learning rate and weight decay of every parameter, from those tuned on a small dense model.

Every parameter is a vector (biases, gains, embeddings: one axis that widens) or a matrix (two), and a structured layer's
factors are matrices with a rule of their own. Sources: 2203.03466, table 3 (dense layers); 2406.06248, section 4
(factors); 2512.05620 (orthogonalised updates, weight decay); 2310.02244 and 2505.01618 (depth).
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from einlayers.errors import FieldError
from einlayers.muon import Group
from einlayers.scaling import FactorRule, View, branch_scale

OptimizerName = Literal["adamw", "adam", "sgd", "muon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How one optimiser's rates follow widths, which come as ratios to the base model's, and depths."""

    dense: Callable[[float, float], float]
    """Of one matrix, by its fan_in and fan_out."""
    factor: Callable[[FactorRule, int], float]
    """Of one factor against the dense matrix, by its rule and the number of factors."""
    vectors_widen: bool = False
    """Whether the rates of vectors grow with their length."""
    branch: Callable[[int, int], float] = branch_scale
    """Of what is inside residual blocks, by the two depths."""
    decay_is_decoupled: bool = True
    has_views: bool = False


_RECIPES: dict[str, _Recipe] = {
    "adamw": _Recipe(dense=lambda fan_in, _: 1 / fan_in, factor=lambda rule, _: rule.adam_lr_mult),
    "adam": _Recipe(
        dense=lambda fan_in, _: 1 / fan_in, factor=lambda rule, _: rule.adam_lr_mult, decay_is_decoupled=False
    ),
    # An SGD step on a branch of scale s moves the output by s squared: L branches of scale sqrt(1/L) need no smaller rate.
    "sgd": _Recipe(
        dense=lambda fan_in, fan_out: fan_out / fan_in,
        factor=lambda rule, _: rule.sgd_lr_mult,
        vectors_widen=True,
        branch=lambda depth, base_depth: 1.0,
    ),
    "muon": _Recipe(dense=lambda fan_in, fan_out: 1.0, factor=lambda _, num_factors: 1 / num_factors, has_views=True),
}


def param_groups(
    model: nn.Module,
    base_lr: float,
    *,
    base: nn.Module | None = None,
    optimizer: OptimizerName = "adamw",
    input_lr_mult: float = 1.0,
    weight_decay: float = 0.0,
    depth_rule: bool = False,
) -> list[Group]:
    """Parameter groups in torch's format, one per rate and decay; every parameter, also a tied one, is in exactly one.

    ``base`` is the small dense model on which ``base_lr`` was tuned; only its shapes are read, so it may be on the meta
    device. Modules find theirs in it by name; indices of repeated blocks need not agree, so it may have fewer. None: the
    model is its own base, and rates differ only by what structured layers need against the dense ones they replace.

    Adam: a dense matrix has ``base_lr * base_d_in / d_in``, a factor this times ``adam_lr_mult``; vectors have
    ``base_lr * input_lr_mult``. SGD: a matrix goes with ``d_out / d_in``, a factor this times ``sgd_lr_mult``, vectors
    with their length. Muon (the groups with a ``view``; the others are for its AdamW): every matrix has ``base_lr`` divided
    by the layer's number of factors, as ``einlayers.muon`` scales updates by their fans.

    ``weight_decay`` is for matrices, and such that ``lr * weight_decay`` is that of the base model (2512.05620: decay that
    does not shrink with the rate). ``depth_rule`` goes with branches multiplied by ``branch_scale``: what is inside repeated
    blocks has its rate multiplied by it too, norms and biases included (2505.01618, table 1, alpha = 1/2), except for SGD,
    whose rates do not follow depth (2310.02244). Children of an ``nn.Sequential`` are steps, not residual blocks.
    A tied parameter takes the smallest of its rates, the one that is safe in all its uses; with Muon, AdamW's if it has one.

    Raises:
        FieldError: an argument is outside its range, ``base`` lacks a module of the model or has several candidates of
            different shapes, or a parameter of two widening axes belongs to a module that is not known.
    """
    recipe = _recipe(optimizer, base_lr, input_lr_mult, weight_decay)
    if depth_rule and base is None:
        raise FieldError("depth_rule", expected="a base model whose depth is known, as base=", got=depth_rule)
    rates = _Rates(model, base or model, recipe, base_lr, base_lr * input_lr_mult, depth_rule)
    settings: dict[nn.Parameter, _Setting] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            setting = rates.setting(name, module, key)
            settings[parameter] = min(settings.get(parameter, setting), setting, key=_caution)
    return _merged(settings, weight_decay * base_lr, recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    lr: float
    is_matrix: bool = False
    view: View | None = None


@dataclass(frozen=True, slots=True)
class _Fans:
    fan_in: int
    fan_out: int


def _caution(setting: _Setting) -> tuple[bool, float]:
    return (setting.view is not None, setting.lr)


class _Rates:
    """The setting of each parameter of ``model``, from the counterparts of its modules in ``base``."""

    def __init__(
        self, model: nn.Module, base: nn.Module, recipe: _Recipe, matrix_lr: float, vector_lr: float, depth_rule: bool
    ) -> None:
        self.model, self.base = _Names(model), _Names(base)
        self.recipe, self.matrix_lr, self.vector_lr, self.depth_rule = recipe, matrix_lr, vector_lr, depth_rule

    def setting(self, name: str, module: nn.Module, key: str) -> _Setting:
        depth = self._depth_factor(name) if self.depth_rule else 1.0
        rules = factor_rules_of(module)
        if key in rules:
            lr = depth * self._dense_lr(name, module, key) * self.recipe.factor(rules[key], len(rules))
            return _Setting(
                lr=lr, is_matrix=True, view=_factor_views(name, module)[key] if self.recipe.has_views else None
            )
        if _is_dense(module, key):
            columns = tuple(range(1, module.get_parameter(key).ndim))
            view = ((), (0,), columns) if self.recipe.has_views else None
            return _Setting(lr=depth * self._dense_lr(name, module, key), is_matrix=True, view=view)
        return _Setting(lr=depth * self.vector_lr * self._vector_factor(name, module, key))

    def _dense_lr(self, name: str, module: nn.Module, key: str) -> float:
        fans, base_fans = _fans(module, key), self._base_fans(name, module, key)
        return self.matrix_lr * self.recipe.dense(fans.fan_in / base_fans.fan_in, fans.fan_out / base_fans.fan_out)

    def _base_fans(self, name: str, module: nn.Module, key: str) -> _Fans:
        counterpart = self.base.find(name, module)
        if counterpart is not None:
            return _fans(counterpart, key)
        owner = name.rpartition(".")[0]
        if owner and factor_rules_of(self.model.modules[owner]):
            # A part that structured layers have and dense ones do not, such as a gate: it reads what its layer reads.
            layer = _fans(self.model.modules[owner], key)
            base_layer = self._base_fans(owner, self.model.modules[owner], key)
            fans = _fans(module, key)
            return _Fans(fans.fan_in * base_layer.fan_in // layer.fan_in, fans.fan_out)
        raise FieldError("base", expected=f"a model with a module like {name!r}", got=self.base.with_parameters())

    def _vector_factor(self, name: str, module: nn.Module, key: str) -> float:
        counterpart, parameter = self.base.find(name, module), module.get_parameter(key)
        own = dict(counterpart.named_parameters(recurse=False)).get(key) if counterpart is not None else None
        if own is not None and not isinstance(module, nn.Embedding):
            changed = sum(size != base_size for size, base_size in zip(parameter.shape, own.shape, strict=False))
            if parameter.ndim != own.ndim or changed > 1:
                expected = (
                    f"at most one axis of {key} that widens, as {type(module).__name__} is not known to be a matrix"
                )
                raise FieldError(name, expected=expected, got=(tuple(own.shape), tuple(parameter.shape)))
        if not self.recipe.vectors_widen or parameter.ndim == 0:
            return 1.0
        if own is not None:
            return parameter.shape[-1] / own.shape[-1]
        return parameter.shape[-1] / self._base_fans(name, module, key).fan_out

    def _depth_factor(self, name: str) -> float:
        pattern = self.model.block_pattern(name)
        if pattern is None:
            return 1.0
        depth, base_depth = self.model.counts[pattern], self.base.counts[pattern]
        if base_depth == 0:
            raise FieldError("base", expected=f"a model with a module like {name!r}", got=self.base.with_parameters())
        return self.recipe.branch(depth, base_depth)


class _Names:
    """The modules of a model by dotted name, and by pattern: the name with ``*`` for every index."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self.counts = Counter(map(_pattern, self.modules))
        self._by_pattern: dict[str, list[str]] = defaultdict(list)
        for name in self.modules:
            self._by_pattern[_pattern(name)].append(name)

    def find(self, name: str, module: nn.Module) -> nn.Module | None:
        """What ``module`` is here: the module of its kind with this name, or with the fewest other indices."""
        parts = name.split(".")
        candidates: dict[int, list[str]] = defaultdict(list)
        for other in self._by_pattern.get(_pattern(name), ()):
            if _kind(self.modules[other]) is _kind(module):
                candidates[sum(a == b for a, b in zip(parts, other.split("."), strict=True))].append(other)
        if not candidates:
            return None
        nearest = candidates[max(candidates)]
        if len({_shapes(self.modules[other]) for other in nearest}) > 1:
            raise FieldError("base", expected=f"one shape for all modules like {name!r}", got=nearest)
        return self.modules[nearest[0]]

    def block_pattern(self, name: str) -> str | None:
        """The pattern of a module inside repeated blocks; None for one that is not."""
        inside = name
        while inside.rpartition(".")[2].isdigit() and isinstance(
            self.modules[inside.rpartition(".")[0]], nn.Sequential
        ):
            inside = inside.rpartition(".")[0]
        return _pattern(name) if any(part.isdigit() for part in inside.split(".")) else None

    def with_parameters(self) -> str:
        """The names of the first modules that have parameters, for messages."""
        names = [
            name for name, module in self.modules.items() if next(module.parameters(recurse=False), None) is not None
        ]
        return ", ".join(names[:5])


def factor_rules_of(module: nn.Module) -> dict[str, FactorRule]:
    """The rules of a structured layer's factors, by the names of its parameters; empty for any other module."""
    lr_rules = getattr(module, "lr_rules", None)
    return {} if lr_rules is None else dict(lr_rules())


def _factor_views(name: str, module: nn.Module) -> dict[str, View]:
    matrix_views = getattr(module, "matrix_views", None)
    if matrix_views is None:
        expected = "a layer whose matrix_views() tell which matrices its factors are"
        raise FieldError(name, expected=expected, got=type(module).__name__)
    return dict(matrix_views())


_MATRICES: tuple[tuple[type[nn.Module], frozenset[str]], ...] = (
    (nn.Linear, frozenset({"weight"})),
    (nn.Conv1d, frozenset({"weight"})),
    (nn.Conv2d, frozenset({"weight"})),
    (nn.Conv3d, frozenset({"weight"})),
    (nn.MultiheadAttention, frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})),
)
"""The parameters that are one matrix of shape (fan_out, fan_in), a convolution's kernel being part of fan_in."""


def _kind(module: nn.Module) -> type[nn.Module]:
    """Dense and structured layers, which replace each other, are of one kind."""
    return nn.Linear if isinstance(module, nn.Linear) or factor_rules_of(module) else type(module)


def _is_dense(module: nn.Module, key: str) -> bool:
    return any(isinstance(module, kind) and key in keys for kind, keys in _MATRICES)


def _fans(module: nn.Module, key: str) -> _Fans:
    """The widths of the layer that the parameter ``key`` belongs to, or that the counterpart of its layer has."""
    layer: Any = module
    if factor_rules_of(module):
        return _Fans(layer.d_in, layer.d_out)
    if isinstance(module, nn.Linear):
        return _Fans(module.in_features, module.out_features)
    weight = module.get_parameter(key)
    return _Fans(weight[0].numel(), weight.shape[0])


def _recipe(optimizer: str, base_lr: float, input_lr_mult: float, weight_decay: float) -> _Recipe:
    if optimizer not in _RECIPES:
        raise FieldError("optimizer", expected=f"one of {', '.join(_RECIPES)}", got=optimizer)
    for name, value in (("base_lr", base_lr), ("input_lr_mult", input_lr_mult)):
        if not 0 < value < float("inf"):
            raise FieldError(name, expected="a positive finite number", got=value)
    if not 0 <= weight_decay < float("inf"):
        raise FieldError("weight_decay", expected="a finite number from 0", got=weight_decay)
    if weight_decay and not _RECIPES[optimizer].decay_is_decoupled:
        expected = "0, as the decay of adam is part of its gradient and does not follow the rate; adamw's does"
        raise FieldError("weight_decay", expected=expected, got=weight_decay)
    return _RECIPES[optimizer]


def _merged(settings: dict[nn.Parameter, _Setting], decay_per_step: float, recipe: _Recipe) -> list[Group]:
    members: dict[tuple[float, float, View | None], list[nn.Parameter]] = defaultdict(list)
    for parameter, setting in settings.items():
        decay = decay_per_step / setting.lr if setting.is_matrix else 0.0
        members[setting.lr, decay, setting.view].append(parameter)
    groups: list[Group] = []
    for (lr, decay, view), parameters in members.items():
        group: Group = {"params": parameters, "lr": lr, "weight_decay": decay}
        groups.append(group | {"view": view} if recipe.has_views else group)
    return groups


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((key, tuple(parameter.shape)) for key, parameter in module.named_parameters())
