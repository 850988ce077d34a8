"""Problems for the solver tests: small random ones of every kind, and the shapes of real networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from solvers.problem import Capacity, Group, Link, LocalLimit, Product, SelectionProblem, Table, Term, ValueTable

#: Structures per group of the random problems.
WIDTH = 12


def drawn_values(rng: np.random.Generator, count: int) -> np.ndarray:
    """A value curve: concave, rising, neither, or with ties."""
    kind = rng.integers(4)
    if kind == 0:  # concave, as sorted scores give
        return np.cumsum(np.sort(rng.exponential(size=count))[::-1])
    if kind == 1:  # rising, not concave
        return np.cumsum(rng.exponential(size=count))
    if kind == 2:  # neither rising nor concave
        return rng.normal(size=count)
    return np.round(rng.normal(size=count))  # ties and plateaus


def _table(rng: np.random.Generator, groups: list[Group]) -> Table:
    scope = rng.permutation(len(groups))[: int(rng.integers(1, min(len(groups), 3) + 1))]
    entries = rng.integers(0, 50, size=[len(groups[g]) for g in scope])
    if rng.random() < 0.6:
        for axis in range(entries.ndim):
            entries = np.sort(entries, axis=axis)
    return Table(tuple(scope.tolist()), entries)


def random_problem(seed: int) -> SelectionProblem:
    """Up to 5 groups of up to 5 levels; 1 to 3 budgets of constants, powers, pairs, triples and tables."""
    rng = np.random.default_rng(seed)
    groups = []
    for g in range(int(rng.integers(1, 6))):
        count = int(rng.integers(1, 6))
        levels = np.sort(rng.choice(np.arange(WIDTH), count, replace=False))
        groups.append(Group(f"group{g}", levels, drawn_values(rng, count), WIDTH * g + rng.permutation(WIDTH)))
    capacities = []
    for k in range(int(rng.integers(1, 4))):
        terms: list[Term] = []
        for _ in range(int(rng.integers(1, 8))):
            if rng.random() < 0.2:
                terms.append(_table(rng, groups))
            else:
                scope = rng.integers(0, len(groups), size=int(rng.integers(0, 5)))
                terms.append(Product(tuple(scope.tolist()), int(rng.integers(0, 6))))
        capacities.append(_budget(f"resource{k}", terms, groups, rng.uniform(-0.05, 0.9)))
    return SelectionProblem(tuple(groups), tuple(capacities), WIDTH * len(groups))


def coupled_problem(seed: int) -> SelectionProblem:
    """A random problem with forbidden and valued combinations, local limits and links, each in about half of them."""
    problem = random_problem(seed)
    rng = np.random.default_rng([seed, 1])
    count = len(problem.groups)
    tables, limits, links = [], [], []
    if count > 1 and rng.random() < 0.6:
        for number in range(int(rng.integers(1, 4))):
            scope = rng.permutation(count)[: int(rng.integers(2, min(count, 3) + 1))]
            shape = [len(problem.groups[g]) for g in scope]
            entries = rng.normal(size=shape) * rng.choice([0.0, 0.5])
            if rng.random() < 0.7:
                entries = np.where(rng.random(shape) < rng.choice([0.2, 0.6]), -np.inf, entries)
            tables.append(ValueTable(tuple(scope.tolist()), entries, f"table{number}"))
    if rng.random() < 0.5:
        for number in range(int(rng.integers(1, 4))):
            scope = rng.permutation(count)[: int(rng.integers(1, min(count, 3) + 1))]
            terms = tuple((int(g), int(rng.integers(0, 4))) for g in scope)
            top = sum(c * int(problem.groups[g].levels[-1]) for g, c in terms)
            limits.append(LocalLimit(terms, int(top * rng.uniform(0.3, 1.0)), f"operator{number}"))
    if count > 1 and rng.random() < 0.4:
        for by_index in (True, False):
            scope = rng.permutation(count)[: int(rng.integers(2, min(count, 3) + 1))]
            link = Link(tuple(scope.tolist()), by_index)
            try:
                SelectionProblem(problem.groups, problem.capacities, problem.size, (), (), (link,))
            except ValueError:
                continue  # no common level, or not as many
            links = [link]
    return replace(problem, value_tables=tuple(tables), local_limits=tuple(limits), links=tuple(links))


def _budget(resource: str, terms: list[Term], groups: list[Group], fraction: float) -> Capacity:
    """A limit between what the smallest and the largest levels use."""
    alone = SelectionProblem(tuple(groups), (Capacity(resource, 0, tuple(terms)),), sum(len(g.order) for g in groups))
    least = alone.used(alone.minimum_choice)[0]
    dense = alone.used([len(group) - 1 for group in groups])[0]
    return Capacity(resource, least + int((dense - least) * fraction), tuple(terms))


def permuted(problem: SelectionProblem, order: np.ndarray) -> SelectionProblem:
    """The same problem with its groups in another order; ``order[i]`` is the old place of new group ``i``."""
    place = {int(old): new for new, old in enumerate(order)}
    capacities = tuple(
        Capacity(
            capacity.resource,
            capacity.limit,
            tuple(
                Table(tuple(place[g] for g in term.groups), term.entries)
                if isinstance(term, Table)
                else Product(tuple(place[g] for g in term.groups), term.coefficient)
                for term in capacity.terms
            ),
        )
        for capacity in problem.capacities
    )
    return SelectionProblem(
        tuple(problem.groups[int(old)] for old in order),
        capacities,
        problem.size,
        tuple(
            ValueTable(tuple(place[g] for g in table.groups), table.entries, table.label)
            for table in problem.value_tables
        ),
        tuple(
            LocalLimit(tuple((place[g], c) for g, c in limit.terms), limit.limit, limit.label)
            for limit in problem.local_limits
        ),
        tuple(Link(tuple(place[g] for g in link.groups), link.by_index) for link in problem.links),
    )


class _Network:
    """Collects groups with lognormal scores; layers differ in scale as they do in trained networks."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.groups: list[Group] = []
        self.size = 0

    def group(self, width: int, step: int = 1) -> int:
        scores = np.sort(self.rng.lognormal(size=width))[::-1] * self.rng.lognormal()
        levels = np.arange(step, width + 1, step)
        values = np.cumsum(scores)[levels - 1]
        order = np.arange(self.size, self.size + width)
        self.groups.append(Group(f"group{len(self.groups)}", levels, values, order))
        self.size += width
        return len(self.groups) - 1

    def problem(self, *budgets: tuple[str, list[Term], float]) -> SelectionProblem:
        capacities = []
        for resource, terms, fraction in budgets:
            alone = SelectionProblem(tuple(self.groups), (Capacity(resource, 0, tuple(terms)),), self.size)
            dense = alone.used([len(group) - 1 for group in self.groups])[0]
            capacities.append(Capacity(resource, int(dense * fraction), tuple(terms)))
        return SelectionProblem(tuple(self.groups), tuple(capacities), self.size)


def resnet56(seed: int = 0, macs: float = 0.5, params: float | None = None) -> SelectionProblem:
    """ResNet-56 on 32 x 32 images, every width allowed: 3 residual hubs and 27 inner groups."""
    net = _Network(seed)
    widths, areas = [16, 32, 64], [32 * 32, 16 * 16, 8 * 8]
    hubs = [net.group(width) for width in widths]
    work: list[Term] = [Product((hubs[0],), 27 * areas[0]), Product((hubs[2],), 10)]
    weights: list[Term] = [Product((hubs[0],), 27), Product((hubs[2],), 10)]
    entering = hubs[0]
    for hub, width, area in zip(hubs, widths, areas, strict=True):
        for _ in range(9):
            inner = net.group(width)
            for pair in ((entering, inner), (inner, hub)):
                work.append(Product(pair, 9 * area))
                weights.append(Product(pair, 9))
            if entering != hub:
                work.append(Product((entering, hub), area))
                weights.append(Product((entering, hub), 1))
            entering = hub
    budgets = [("macs", work, macs)] if params is None else [("macs", work, macs), ("params", weights, params)]
    return net.problem(*budgets)


def resnet50(seed: int = 0, macs: float = 0.5, step: int = 8) -> SelectionProblem:
    """ResNet-50 on 224 x 224 images: bottlenecks between residual hubs of up to 2,048 channels."""
    net = _Network(seed)
    stem = net.group(64, step)
    terms: list[Term] = [Product((stem,), 147 * 112 * 112)]
    entering = stem
    for stage, (blocks, width, side) in enumerate(((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))):
        hub = net.group(4 * width, step)
        for block in range(blocks):
            inner, outer = net.group(width, step), net.group(width, step)
            before = side * (2 if block == 0 and stage > 0 else 1)
            terms += [Product((entering, inner), before**2), Product((inner, outer), 9 * side**2)]
            terms.append(Product((outer, hub), side**2))
            if block == 0:
                terms.append(Product((entering, hub), side**2))
            entering = hub
    terms.append(Product((entering,), 1000))
    return net.problem(("macs", terms, macs))


def clique(size: int, seed: int = 0) -> SelectionProblem:
    """Every pair of groups in a product, as dense concatenation gives."""
    net = _Network(seed)
    groups = [net.group(64, 4) for _ in range(size)]
    terms = [Product((i, j), 9 * int(net.rng.choice([64, 256]))) for i in groups for j in groups[:i]]
    return net.problem(("macs", list[Term](terms), 0.5))


def joint_hubs(seed: int = 0) -> SelectionProblem:
    """Three hubs with 16, 16 and 32 levels in products with each other and squared, 27 inner groups of 16 to 64."""
    net = _Network(seed)
    hubs = [net.group(16), net.group(16), net.group(32)]
    terms: list[Term] = []
    for _ in range(27):
        inner = net.group(int(net.rng.choice([16, 32, 64])))
        terms += [Product((inner, hubs[h]), 9 * int(net.rng.choice([64, 256]))) for h in net.rng.permutation(3)[:2]]
    terms += [Product((hubs[0], hubs[1]), 1024), Product((hubs[1], hubs[2]), 256)]
    terms += [Product((hubs[0], hubs[0]), 9216), Product((hubs[2], hubs[2]), 576)]
    return net.problem(("macs", terms, 0.5))


def block_layers(structures: int, layers: int = 54, seed: int = 0) -> SelectionProblem:
    """Independent blocks: each layer keeps its best ones, each block of a layer costs the same."""
    net = _Network(seed)
    work: list[Term] = []
    for _ in range(layers):
        layer = net.group(int(structures / layers * net.rng.uniform(0.3, 1.7)))
        work.append(Product((layer,), int(net.rng.integers(49, 12544))))
    return net.problem(("macs", work, 0.12))
