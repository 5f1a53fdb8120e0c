"""Structured layers in models that exist: in for dense ones, and out again.

In: ``replace_linears`` makes new factors or projects the trained ones (``einlayers.projection``; 2204.00595, section 3.3,
"dense-to-sparse"). Out: ``densify`` multiplies the factors, so that training goes on dense (there: "reverse
sparsification") or inference has one matrix. Either way the model is changed in place, and as a whole or not at all.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol, TypedDict, Unpack, get_args, overload, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from einlayers.dims import Dims, Policy, check_size, resolve
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.optim import param_groups
from einlayers.projection import project
from einlayers.replacements import Kept, Replacement, Replacements
from einlayers.taxonomy import Cost, is_dense
from einlayers.theta import Theta

__all__ = ["Kept", "Options", "Replacement", "Replacements", "densify", "param_groups", "replace_linears"]

Structure = Theta | str | Dims

Choice = Callable[[str, nn.Linear], Structure | None]
"""The structure of each layer by its name and itself; None leaves it."""

Init = Literal["fresh", "project"]

Patterns = str | Collection[str]
"""Shell-style patterns of dotted names: ``blocks.*.up``; ``*`` also matches dots."""


class Options(TypedDict, total=False):
    """What new layers take beside their structure (``EinsumLinear``); projected ones take ``policy`` and ``recompute``."""

    policy: Policy
    zero_init: bool
    weight_norm: bool
    recompute: bool


@runtime_checkable
class Structured(Protocol):
    """A layer that is a matrix in another form."""

    @property
    def bias(self) -> Tensor | None:
        """``(d_out,)``"""
        ...

    def to_dense(self) -> Tensor:
        """The matrix ``(d_out, d_in)``."""
        ...


def replace_linears(
    model: nn.Module,
    structure: Structure | Choice,
    *,
    include: Patterns = "*",
    exclude: Patterns = (),
    init: Init = "fresh",
    min_features: int = 1,
    **options: Unpack[Options],
) -> Replacements:
    """Put an ``EinsumLinear`` in the place of every ``nn.Linear`` whose dotted name matches; return what was done.

    "fresh" draws new factors and starts biases at 0; "project" takes the structured matrix that is nearest to the weight
    and keeps the bias (a zero weight, as of a residual branch that starts closed, becomes a zero map that learns). Device,
    dtype, training mode and ``requires_grad`` of the weight carry over. A layer under several names stays one layer.

    Layers stay, with the reason in the report: where the structure is dense or None, where the smaller width is below
    ``min_features``, and where a replacement would break something: a weight that another module shares or reads (such
    as the output projection of ``nn.MultiheadAttention``), hooks, parametrisations, a subclass with a forward of its own.
    An ``nn.TransformerEncoderLayer`` whose layers are replaced no longer takes its fused path, which reads their weights.

    Raises:
        FieldError: nothing matches, nothing that matches can be replaced, or an argument is out of range; the model is
            then as it was.
    """
    _check_init(init, options)
    check_size("min_features", min_features)
    sites = _matching(model, nn.Linear, "nn.Linear", include, exclude)
    users = _users(model)
    plan: list[tuple[_Site, nn.Module, Replacement]] = []
    kept: list[Kept] = []
    obstacles = 0
    for site in sites:
        linear: nn.Linear = site.module
        reason = _obstacle(site, users)
        obstacles += reason is not None
        chosen = None if reason else _chosen(structure, site.name, linear, min_features, options)
        if isinstance(chosen, Theta | Dims):
            layer, error = _structured(linear, chosen, init, options)
            plan.append((site, layer, _replacement(site.name, linear, layer, layer.dims, error)))
        else:
            kept.append(Kept(name=site.name, reason=reason or chosen or ""))
    if obstacles == len(sites):
        raise FieldError("include", expected="a layer that can be replaced", got="; ".join(map(_why, kept)))
    return _carried_out(model, plan, kept)


@overload
def densify(model: Structured) -> nn.Linear: ...


@overload
def densify(model: nn.Module, *, include: Patterns = "*", exclude: Patterns = ()) -> Replacements: ...


def densify(
    model: nn.Module | Structured, *, include: Patterns = "*", exclude: Patterns = ()
) -> nn.Linear | Replacements:
    """Multiply out structured layers: the same function with one matrix each.

    For a layer, the new ``nn.Linear``; for a model, what was done to it in place. The optimiser's state is about
    parameters that are gone: training goes on with a new one, its rates from ``param_groups``, after a short warm-up.

    Raises:
        FieldError: nothing structured matches, or all that matches has hooks; the model is then as it was.
    """
    if isinstance(model, Structured):
        return _dense(model)
    sites = _matching(model, Structured, "structured layer", include, exclude)
    plan: list[tuple[_Site, nn.Module, Replacement]] = []
    kept: list[Kept] = []
    for site in sites:
        if _has_hooks(site.module):
            kept.append(Kept(name=site.name, reason=_HOOKS))
        else:
            linear = _dense(site.module)
            dims = getattr(site.module, "dims", None)
            plan.append((site, linear, _replacement(site.name, site.module, linear, dims, None)))
    if not plan:
        raise FieldError("include", expected="a layer that can be replaced", got="; ".join(map(_why, kept)))
    return _carried_out(model, plan, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """A module and all of its names in the model."""

    names: tuple[str, ...]
    module: Any

    @property
    def name(self) -> str:
        return self.names[0]


_HOOKS = "it has hooks, which would be lost"


def _matching(model: nn.Module, kind: type[Any], called: str, include: Patterns, exclude: Patterns) -> list[_Site]:
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kind) and name:
            names[module].append(name)
    found = [
        _Site(names=tuple(aliases), module=module)
        for module, aliases in names.items()
        if any(map(_matcher(include), aliases)) and not any(map(_matcher(exclude), aliases))
    ]
    if not found:
        some = ", ".join(aliases[0] for aliases in list(names.values())[:5]) or f"none, it holds no {called}"
        raise FieldError("include", expected=f"a pattern of layers of the model ({some})", got=include)
    return found


def _matcher(patterns: Patterns) -> Callable[[str], bool]:
    each = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in each)


def _users(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    users = defaultdict(list)
    for module in model.modules():
        for _, parameter in module.named_parameters(recurse=False):
            users[parameter].append(module)
    return users


def _obstacle(site: _Site, users: dict[nn.Parameter, list[nn.Module]]) -> str | None:
    """Why replacing this linear layer would change more than the layer."""
    linear = site.module
    if isinstance(linear, LazyModuleMixin):
        return "it has no widths yet; run the model once"
    if isinstance(linear, NonDynamicallyQuantizableLinear):
        return "its weight is read directly by nn.MultiheadAttention"
    if type(linear).forward is not nn.Linear.forward:
        return f"{type(linear).__name__} has a forward of its own"
    tensors = dict(linear.named_parameters()) | dict(linear.named_buffers())
    if not tensors.keys() <= {"weight", "bias"}:
        return f"it holds more than a weight and a bias: {', '.join(sorted(tensors.keys() - {'weight', 'bias'}))}"
    if _has_hooks(linear):
        return _HOOKS
    others = {type(user).__name__ for tensor in tensors.values() for user in users[tensor] if user is not linear}
    return f"it shares a parameter with another module ({', '.join(sorted(others))})" if others else None


def _has_hooks(module: nn.Module) -> bool:
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(len, kinds))


def _chosen(
    structure: Structure | Choice, name: str, linear: nn.Linear, min_features: int, options: Options
) -> Theta | Dims | str:
    """The structure for this layer, or the reason why it wants none."""
    if min(linear.in_features, linear.out_features) < min_features:
        return f"it has fewer than {min_features} features"
    chosen = (
        structure if isinstance(structure, Theta | str | Dims) or not callable(structure) else structure(name, linear)
    )
    if chosen is None:
        return "no structure was chosen for it"
    chosen = Theta.parse(chosen) if isinstance(chosen, str) else chosen
    if not isinstance(chosen, Theta | Dims):
        raise FieldError("structure", expected="a theta, its name, axes, or a function that returns one", got=chosen)
    if isinstance(chosen, Theta):
        dense = is_dense(chosen, linear.in_features, linear.out_features, options.get("policy", "exact"))
        return "its structure is dense" if dense else chosen
    if (chosen.d_in, chosen.d_out) != (linear.in_features, linear.out_features):
        expected = f"axes for {name}, {linear.in_features} -> {linear.out_features}"
        raise FieldError("structure", expected=expected, got=f"{chosen.d_in} -> {chosen.d_out}")
    return chosen


def _check_init(init: str, options: Options) -> None:
    if init not in get_args(Init):
        raise FieldError("init", expected=f"one of {', '.join(get_args(Init))}", got=init)
    given = {name for name in ("zero_init", "weight_norm") if options.get(name)}
    if init == "project" and given:
        raise FieldError("init", expected=f"fresh with {', '.join(sorted(given))}, which change the weights", got=init)


def _structured(
    linear: nn.Linear, chosen: Theta | Dims, init: Init, options: Options
) -> tuple[EinsumLinear, float | None]:
    """The new layer and, where its weights come from the old one, how far they are from them."""
    if init == "project" and linear.weight.is_meta:
        raise FieldError("init", expected="fresh for a model on the meta device, which has no weights", got=init)
    is_zero = init == "project" and not linear.weight.any()
    if init == "project" and not is_zero:
        projection = project(linear.weight.detach(), chosen, policy=options.get("policy", "exact"))
        layer, error = projection.layer(linear.bias), float(projection.error)
        layer.recompute = options.get("recompute", False)
    else:
        layer, error = _fresh(linear, chosen, options, is_zero), 0.0
        if is_zero and layer.bias is not None:
            layer.bias.data.copy_(linear.bias)
    for name, parameter in layer.named_parameters():
        source = linear.bias if name == "bias" else linear.weight
        parameter.requires_grad_(source.requires_grad)
    return layer.train(linear.training), error if init == "project" else None


def _fresh(linear: nn.Linear, chosen: Theta | Dims, options: Options, is_zero: bool) -> EinsumLinear:
    policy: Policy = options.get("policy", "exact")
    theta = chosen if isinstance(chosen, Theta) else chosen.theta
    dims = resolve(chosen, linear.in_features, linear.out_features, policy) if isinstance(chosen, Theta) else chosen
    layer = EinsumLinear.from_dims(
        dims,
        bias=linear.bias is not None,
        zero_init=is_zero or options.get("zero_init", False),
        weight_norm=options.get("weight_norm", False),
        recompute=options.get("recompute", False),
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    layer.theta = theta
    return layer


@torch.no_grad()
def _dense(layer: Any) -> nn.Linear:
    W_OI, bias_O = layer.to_dense(), layer.bias
    # On the meta device nothing is drawn: the caller's random numbers stay as they were.
    linear = nn.Linear(W_OI.shape[1], W_OI.shape[0], bias=bias_O is not None, device="meta")
    is_trained = any(parameter.requires_grad for name, parameter in layer.named_parameters() if name != "bias")
    linear.weight = nn.Parameter(W_OI.clone(memory_format=torch.contiguous_format), requires_grad=is_trained)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O.detach().clone(), requires_grad=bias_O.requires_grad)
    return linear.train(layer.training)


def _replacement(name: str, before: nn.Module, after: nn.Module, dims: Dims | None, error: float | None) -> Replacement:
    linear: Any = before if isinstance(before, nn.Linear) else after
    return Replacement(
        name=name,
        d_in=linear.in_features,
        d_out=linear.out_features,
        dims=dims if isinstance(dims, Dims) else None,
        params_before=sum(parameter.numel() for parameter in before.parameters()),
        params_after=sum(parameter.numel() for parameter in after.parameters()),
        macs_before=_macs(before),
        macs_after=_macs(after),
        error=error,
    )


def _macs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    own = getattr(layer, "cost", None)
    return own.macs if isinstance(own, Cost) else None


def _carried_out(model: nn.Module, plan: list[tuple[_Site, nn.Module, Replacement]], kept: list[Kept]) -> Replacements:
    for site, layer, _ in plan:
        for name in site.names:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, layer)
    _leave_fused_paths(model)
    return Replacements(replaced=tuple(replacement for _, _, replacement in plan), kept=tuple(kept))


def _leave_fused_paths(model: nn.Module) -> None:
    for stack in _structured_encoders(model, nn.TransformerEncoder):
        stack.use_nested_tensor = False
    for layer in _structured_encoders(model, nn.TransformerEncoderLayer):
        # What torch itself sets for an activation that its fused kernel does not have; nothing else reads it.
        layer.activation_relu_or_gelu = 0


def _structured_encoders(model: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, kind) and any(isinstance(part, EinsumLinear) for part in module.modules()):
            yield module


def _why(kept: Kept) -> str:
    return f"{kept.name}: {kept.reason}"
