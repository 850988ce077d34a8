"""Allocation: ties, links, local limits, and what it is never worse than."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.allocation import Allocation
from solvers.problem import Capacity, Group, Link, LocalLimit, Product, SelectionProblem, Table, ValueTable
from tests.references import global_threshold, marginal_greedy, uniform
from tests.solvers.instances import (
    coupled_problem,
    resnet50,
    resnet56,
)
from tests.solvers.laws import check_laws


@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_greedy_or_a_threshold(seed: int) -> None:
    """Not even with a tolerance that asks for nothing: the plain rules are among the starts."""
    lazy = Allocation(gap_tolerance=1e9, max_nodes=0)
    for problem in (resnet56(seed, 0.3), resnet56(seed, 0.5, 0.4), resnet50(seed, 0.4, step=32)):
        result = lazy.solve(problem)
        assert result.certificate is not None
        for rule in (marginal_greedy, global_threshold, uniform):
            choice = rule(problem)
            assert problem.evaluate(choice).feasible
            assert result.certificate.objective >= problem.value(choice)


@pytest.mark.parametrize("seed", range(20))
def test_units_do_not_matter(seed: int) -> None:
    """Values in other units scale objective and bound; costs and limits in other units change nothing."""
    problem = coupled_problem(seed)
    settings = Allocation(gap_tolerance=0.0, time_limit=None)
    scaled = replace(
        problem,
        groups=tuple(Group(g.name, g.levels, 1024.0 * g.values, g.order) for g in problem.groups),
        value_tables=tuple(replace(table, entries=1024.0 * table.entries) for table in problem.value_tables),
        capacities=tuple(
            Capacity(
                capacity.resource,
                7 * capacity.limit,
                tuple(
                    Table(term.groups, 7 * term.entries)
                    if isinstance(term, Table)
                    else Product(term.groups, 7 * term.coefficient)
                    for term in capacity.terms
                ),
            )
            for capacity in problem.capacities
        ),
    )
    one, other = settings.solve(problem).certificate, settings.solve(scaled).certificate
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert other.objective == pytest.approx(1024.0 * one.objective, rel=1e-12, abs=1e-6)
        assert other.bound == pytest.approx(1024.0 * one.bound, rel=1e-9, abs=1e-6)


def test_a_removed_block_is_found_worth_removing() -> None:
    """Two tied groups that cost much and keep little go to level 0 together, in one move of both."""
    order = np.arange(4)
    values = (np.array([0.0, 0.1, 0.2]), np.array([0.0, 0.1, 0.2]), np.array([0.0, 5.0, 9.0]))
    groups = tuple(Group(f"g{g}", np.array([0, 2, 4]), v, order + 4 * g) for g, v in enumerate(values))
    tie = ValueTable((0, 1), np.where(np.eye(3)[0][:, None] == np.eye(3)[0][None, :], 0.0, -np.inf), "go together")
    terms = (Product((0, 1), 10), Product((2,), 5))
    problem = SelectionProblem(groups, (Capacity("macs", 20, terms),), 12, (tie,))
    result = Allocation(gap_tolerance=0.0).solve(problem, start=[2, 2, 0])
    check_laws(problem, result)
    assert result.choice is not None
    assert result.choice.tolist() == [0, 0, 2]


def test_uniform_blocks_stay_uniform() -> None:
    """All inner widths of a ResNet-56's last stage linked: one decision, certified."""
    problem = resnet56()
    inner = tuple(g for g, group in enumerate(problem.groups) if len(group) == 64 and g > 20)[1:]
    linked = replace(problem, links=(Link(inner),))
    result = Allocation().solve(linked)
    check_laws(linked, result)
    assert result.choice is not None
    assert len(set(result.choice[list(inner)].tolist())) == 1
    free = Allocation(gap_tolerance=1e-6).solve(problem).certificate
    assert free is not None
    assert result.certificate is not None
    assert result.certificate.objective <= free.bound


def test_peak_memory_is_kept_at_every_operator() -> None:
    """A limit on what lives at each pair of neighbours, tighter than the budget asks; the bound knows of it."""
    problem = resnet56(macs=0.6)
    limits = tuple(
        LocalLimit(((1, 256), (g, 256)), 256 * 50, f"conv{g}")
        for g, group in enumerate(problem.groups)
        if g > 1 and len(group) == 32
    )
    tight = replace(problem, local_limits=limits)
    result = Allocation().solve(tight)
    check_laws(tight, result)
    assert result.certificate is not None
    assert result.certificate.gap <= 1e-3
    loose = Allocation().solve(problem).certificate
    assert loose is not None
    assert result.certificate.objective < loose.objective
