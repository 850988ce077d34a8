"""How far can this network be pruned at all? One call, several answers, each with its error and its meaning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from solvers.effective_dimension import Spectrum
from structprune.axes.propagate import LabelledGraph
from structprune.data import Loss
from structprune.limit.active import checked_path
from structprune.limit.curvature import Curvature, GaussNewton, Hessian, LossAt
from structprune.limit.estimating import ESTIMATORS, Estimating
from structprune.limit.given import checked_loss, epsilon_of, refuse_unsteady
from structprune.limit.lanczos import Lanczos, check_memory
from structprune.limit.layer_curves import layer_curves
from structprune.limit.layerwise import Layerwise, layerwise
from structprune.limit.path import Path
from structprune.limit.slq import quadrature
from structprune.limit.value import Interval, Limit, LimitEstimate
from structprune.progress import Phases
from structprune.structures import Structures, channels
from structprune.versions import installed_versions

__all__ = ["pruning_limit"]

CURVATURES = ("auto", "ggn", "hessian", "layerwise")
#: On a CPU, networks with more weights than this get the layer-wise curvature by default.
LARGE = 100_000
#: A second-order step that lowers the loss by more than this fraction of epsilon: the network is not at rest.
RESTLESS = 0.1
GATE_STEPS = 32
#: A quadrature whose bracket stays wider than this, relative to N, is warned about.
OPEN = 0.05
#: Rounding of more than this fraction of the scale that matters is warned about.
FLOOR = 0.1


def pruning_limit(
    model: nn.Module,
    data: Any,
    loss: Loss | None = None,
    *,
    structures: Structures | None = None,
    free: Iterable[str] = (),
    epsilon: str | float = "batch_std",
    curvature: str = "auto",
    estimators: Sequence[str] = ESTIMATORS,
    tau: Sequence[float] = (0.05, 0.1),
    probes: int = 8,
    steps: int = 64,
    confidence: float = 0.95,
    seed: int = 0,
    example: Any = None,
    progress: bool = True,
) -> Limit:
    """Estimate the smallest size to which a trained network can be pruned while its loss rises by at most epsilon.

    Supports are nested: single weights by size, structures by energy per weight. Each estimator says how small the
    support may become; only 'constructive' is a bound (an upper one, on these data), because it builds the network.

    Parameters
    ----------
    model
        A trained network in evaluation mode; left untouched.
    data
        Batches of (inputs, targets), the same in every pass: no shuffling, no augmentation.
    loss
        ``loss(output, target)``, mean nats; by default as in ``solve``.
    structures
        What is removed whole; by default single weights.
    free
        Patterns of names of parameters or modules whose weights always stay.
    epsilon
        Allowed rise of the loss in nats, or 'batch_std': the standard deviation of the loss over batches.
    curvature
        'ggn' (Gauss-Newton), 'hessian' (negative eigenvalues clipped), 'layerwise' (block diagonal, exact spectrum,
        no stationary point needed), or 'auto': layer-wise on a CPU for more than 100,000 weights, else Gauss-Newton.
    estimators
        Some of 'paper', 'generic', 'trust', 'constructive'.
    tau
        Radii of the trust region relative to the survivors' length.
    probes, steps
        Lanczos runs, and their length at first; it is doubled where the quadrature's bracket is still open. Updates
        use a Krylov space of at most ``steps`` dimensions.
    confidence
        Of all intervals: over probes, quadrature and the batches behind epsilon.
    seed
        For probes and resampling; equal seeds give equal limits.
    example
        Arguments of one forward call for tracing (layer-wise only); by default the first batch.
    progress
        Show what is being done, on standard error.

    Returns
    -------
    The limit; ``print`` it.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not what they must be: "Expected ... Got ... Do ...".
    MemoryError
        If the Lanczos basis would not fit.

    References
    ----------
    Zhang, Xue, Li, Gong, "How sparse can we prune a deep network: a fundamental limit perspective", arXiv 2306.05857;
    Golub and Meurant, "Matrices, moments and quadrature with applications" (2010); Hassibi and Stork (1993).
    """
    _check(estimators, curvature, tau, probes, steps, confidence)
    phases = Phases(progress)
    with phases.phase("checking"):
        at = checked_loss(model, data, loss)
        here = at.layout.weights(model)
        allowed, source = epsilon_of(epsilon, at, here, confidence, seed)
    with phases.phase("curvature"):
        operator = _curvature(_kind(curvature, here), at, structures, example, here, seed)
        path, notes = _path(at, here, structures, free, operator)
        if not isinstance(operator, Layerwise):
            refuse_unsteady(operator, here, seed)
    needs_basis = not isinstance(operator, Layerwise) or bool({"trust", "constructive"} & set(estimators))
    needed = _memory(here, steps, progress) if needs_basis else 0
    with phases.phase("spectrum"):
        run, warnings = _probed(at, here, path, operator, allowed, tuple(tau), probes, steps, confidence, seed)
    stationarity = None
    if not isinstance(operator, Layerwise):
        with phases.phase("stationarity"):
            stationarity = _stationarity(run)
        if stationarity > RESTLESS * allowed.value:
            warnings.append(
                f"the network is not at rest: one second-order step would lower its loss by {stationarity:.3g} nats, "
                f"{stationarity / allowed.value:.2g} epsilon. The limits assume a minimum; train to convergence first"
            )
    with phases.phase("estimating"):
        # Networks that are built tell the trust region's losses on the way.
        order = sorted(set(estimators), key=("constructive", "trust", "paper", "generic").index)
        found = {name: run.estimates(name) for name in order}
        movement, error = _model_check(run, found)
    dimension = run.spectrum.dimension(run.paper_scale)
    return Limit(
        model_name=type(model).__name__,
        kind="weights" if structures is None else structures.kind,
        weights=len(here),
        free=path.free,
        dead=int((~run.alive).sum()),
        structures=int(path.structures[-1]),
        loss=run.base_loss,
        examples=at.examples,
        epsilon=allowed,
        epsilon_source=source,
        curvature=_kind(curvature, here),
        estimates=tuple(one for name in estimators for one in found[name]),
        dimension=Interval(dimension.low, dimension.value, dimension.high),
        stationarity=stationarity,
        movement=movement,
        model_error=error,
        memory_bytes=needed,
        layers=layer_curves(operator, here) if isinstance(operator, Layerwise) else (),
        warnings=tuple(warnings),
        notes=tuple(notes),
        confidence=confidence,
        seed=seed,
        seconds=sum(phases.seconds.values()),
        versions=installed_versions(),
    )


def _check(
    estimators: Sequence[str], curvature: str, tau: Sequence[float], probes: int, steps: int, confidence: float
) -> None:
    """Refuse settings that are not what they must be."""
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if isinstance(estimators, str) or unknown or not estimators:
        raise ValueError(f"Expected estimators out of {ESTIMATORS}. Got {estimators!r}. Pass a tuple of some of them.")
    if curvature not in CURVATURES:
        raise ValueError(f"Expected curvature to be one of {CURVATURES}. Got {curvature!r}. Pass 'auto' if unsure.")
    if not len(tau) or not all(np.isfinite(radius) and radius >= 0 for radius in tau):
        raise ValueError(f"Expected radii tau >= 0. Got {tuple(tau)}. Pass for instance (0.05, 0.1).")
    for name, value in (("probes", probes), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"Expected {name} to be an integer >= 1. Got {value!r}. Use 8 probes of 64 steps.")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence between 0 and 1. Got {confidence}. Use 0.95.")


def _kind(curvature: str, here: Tensor) -> str:
    if curvature != "auto":
        return curvature
    return "layerwise" if here.device.type == "cpu" and len(here) > LARGE else "ggn"


def _curvature(
    kind: str, at: LossAt, structures: Structures | None, example: Any, here: Tensor, seed: int
) -> Curvature:
    if kind == "ggn":
        return GaussNewton(at, here)
    if kind == "hessian":
        return Hessian(at, here)
    labelled: LabelledGraph | None = structures.labelled if structures is not None else None
    if labelled is None:
        labelled = channels(at.model, at.batches[0][0] if example is None else example).labelled
    assert labelled is not None
    batches = [(inputs, targets) for inputs, targets, _ in at.batches]
    return layerwise(at.model, labelled, [inputs for inputs, _ in batches], batches, at.loss, seed)


def _memory(here: Tensor, steps: int, progress: bool) -> int:
    """Bytes of the Lanczos basis: said before it is made, refused where it does not fit."""
    steps = min(steps, len(here))
    needed = steps * len(here) * here.element_size()
    if progress:
        text = f"Lanczos basis: {steps} x {len(here):,} numbers, {needed / 2**20:,.1f} MiB on {here.device}"
        Console(stderr=True).print(text, highlight=False)
    check_memory(needed, here.device, steps, len(here))
    return needed


def _path(
    at: LossAt, here: Tensor, structures: Structures | None, free: Iterable[str], operator: Curvature
) -> tuple[Path, list[str]]:
    """The path, and what a reader should know of it."""
    seen = {layer.name for layer in operator.layers} if isinstance(operator, Layerwise) else None
    path, notes = checked_path(at, here, structures, free, seen)
    whole = [name for name, shape in zip(at.layout.names, at.layout.shapes, strict=True) if len(shape) > 1]
    unseen = [name for name in whole if seen is not None and name not in seen]
    if unseen and structures is None:
        notes.append(f"{', '.join(unseen[:3])}{' ...' if unseen[3:] else ''}: no layer-wise curvature, always kept")
    return path, notes


def _probed(
    at: LossAt,
    here: Tensor,
    path: Path,
    operator: Curvature,
    epsilon: Interval,
    tau: tuple[float, ...],
    probes: int,
    steps: int,
    confidence: float,
    seed: int,
) -> tuple[Estimating, list[str]]:
    """The estimators with the curvature's spectrum, exact or probed for the scale of the paper's fixed point."""
    alive = ~((here == 0) & _unfelt(at, here, operator, seed)).cpu().numpy()

    def estimating(spectrum: Spectrum) -> Estimating:
        return Estimating(at, here, path, operator, spectrum, alive, epsilon, tau, min(steps, len(here)))

    if isinstance(operator, Layerwise):
        return estimating(operator.spectrum()), []
    found = quadrature(
        operator, here, probes, steps, lambda spectrum: estimating(spectrum).paper_scale, confidence, seed
    )
    warnings = []
    if found.bracket > OPEN:
        warnings.append(
            f"after {found.steps} steps the quadrature still leaves {100 * found.bracket:.2g} % of the effective "
            "dimension open. Pass more steps"
        )
    run = estimating(found.spectrum)
    if found.floor > FLOOR * run.paper_scale:
        warnings.append(
            f"{str(here.dtype).removeprefix('torch.')} resolves curvature down to {found.floor:.2g} nats per squared "
            f"weight, and {run.paper_scale:.2g} matters: the effective dimension misses what lies below. Pass "
            "model.double() with data in double precision"
        )
    return run, warnings


def _unfelt(at: LossAt, here: Tensor, operator: Curvature, seed: int) -> Tensor:
    """Boolean ``(D,)``: weights on which no output depends, to first order, on any of the data."""
    if isinstance(operator, Layerwise):
        felt = {layer.name: layer.seen for layer in operator.layers}
        parts = at.layout.split(torch.zeros_like(here, dtype=torch.bool))
        return at.layout.flat([(~felt[n]).to(here.device) if n in felt else part for n, part in parts.items()])
    generator = torch.Generator().manual_seed(seed + 1)
    total = torch.zeros_like(here)
    for inputs, _, _ in at.batches:
        weights = {name: part.detach().requires_grad_() for name, part in at.layout.split(here).items()}
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(at.output(weights, inputs)) if _grows(leaf)]
        dual = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in leaves]
        found = torch.autograd.grad(leaves, list(weights.values()), dual, materialize_grads=True)
        total += at.layout.flat(list(found)).abs()
    return total == 0


def _grows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _stationarity(run: Estimating) -> float:
    """By how much one damped second-order step would lower the loss: 1/2 g'(H + mu)^-1 g, in nats."""
    lanczos = Lanczos(run.curvature, run.at.gradient(run.here))
    lanczos.extend(GATE_STEPS)
    if not lanczos.alpha:
        return 0.0
    beside = lanczos.beta[:-1]
    inner = np.diag(lanczos.alpha) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(inner)
    return float(0.5 * lanczos.norm**2 * (vectors[0] ** 2 @ (1 / (np.maximum(values, 0.0) + run.paper_scale))))


def _model_check(run: Estimating, found: dict[str, list[LimitEstimate]]) -> tuple[float | None, float | None]:
    """How far the unbounded update goes at the trust region's limit, and how wrong the model is where it was tried."""
    at = {name: run.position_of(estimates[0]) for name, estimates in found.items()}
    movement = run.movement(at["trust"]) if "trust" in at else None
    return movement, run.model_error(at["constructive"]) if "constructive" in at else None
