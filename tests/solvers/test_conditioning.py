"""Conditioning: optima and proofs where a few groups couple all others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers import conditioning
from solvers.choose import choose
from solvers.conditioning import Conditioning, Proof, conditioned, cutset
from solvers.problem import Capacity, Group, Link, Product, SelectionProblem, Table, Term
from solvers.result import Certificate, TerminationReason
from solvers.verify import is_maximal
from tests.references import best_choice
from tests.solvers.instances import resnet50


def star(seed: int, leaves: int = 4, hubs: int = 1, fraction: float = 0.5) -> SelectionProblem:
    """Hubs in products and tables with every leaf, coarse levels, one or two budgets."""
    rng = np.random.default_rng(seed)
    groups = []
    for g in range(hubs + leaves):
        levels = np.sort(rng.choice(np.arange(1, 13), int(rng.integers(2, 5)), replace=False))
        groups.append(Group(f"group{g}", levels, np.cumsum(rng.exponential(size=len(levels))), 12 * g + np.arange(12)))
    capacities = []
    for k in range(int(rng.integers(1, 3))):
        terms: list[Term] = []
        for leaf in range(hubs, hubs + leaves):
            hub = int(rng.integers(hubs))
            if rng.random() < 0.3:
                shape = len(groups[hub]), len(groups[leaf])
                terms.append(Table((hub, leaf), np.sort(np.sort(rng.integers(0, 90, shape), axis=0), axis=1)))
            else:
                terms.append(Product((hub, leaf), int(rng.integers(1, 9))))
        terms += [Product((0,), 3), Product((), 5)]
        alone = SelectionProblem(tuple(groups), (Capacity("alone", 0, tuple(terms)),), 12 * len(groups))
        least, most = alone.used(alone.minimum_choice)[0], alone.used([len(group) - 1 for group in groups])[0]
        capacities.append(Capacity(f"resource{k}", least + int((most - least) * fraction), tuple(terms)))
    return SelectionProblem(tuple(groups), tuple(capacities), 12 * len(groups))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocation stops at the root, so that levels are fixed in every problem."""
    monkeypatch.setattr(conditioning, "FIRST_NODES", 0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(60))
def test_the_best_choice_is_found_and_proven(seed: int) -> None:
    """What enumeration finds, under a bound that verifies, with one hub and with two."""
    problem = star(seed, hubs=1 + seed % 2, fraction=0.2 + 0.1 * (seed % 6))
    result = Conditioning(gap_tolerance=0).solve(problem)
    best = best_choice(problem)
    assert best is not None
    assert result.certificate is not None
    assert result.choice is not None
    assert is_maximal(problem, result.choice)
    assert problem.evaluate(result.choice).feasible
    assert result.certificate.objective == pytest.approx(best.value, rel=1e-12)
    assert result.certificate.bound >= best.value * (1 - 1e-12)
    assert result.termination.reason is TerminationReason.OPTIMAL
    result.certificate.verify(problem)


def proven(seed: int = 0) -> tuple[SelectionProblem, Certificate]:
    """A problem whose proof goes through the cases."""
    for number in range(seed, seed + 200):
        problem = star(number, leaves=5)
        certificate = Conditioning(gap_tolerance=0).solve(problem).certificate
        if certificate is not None and isinstance(certificate.check, Proof):
            if any(case.certificate is not None for case in certificate.check.cases):
                return problem, certificate
    raise AssertionError("no such problem among 200")


@pytest.mark.usefixtures("at_once")
def test_false_proofs_are_refused() -> None:
    """A lower bound, a missing case, negative prices and a case called infeasible are found out."""
    problem, certificate = proven()
    certificate.verify(problem)
    proof = certificate.check
    assert isinstance(proof, Proof)
    settled = next(i for i, case in enumerate(proof.cases) if case.certificate is not None)
    lower = certificate.objective - 1e-3 * abs(certificate.objective)
    false = [
        replace(certificate, bound=lower, gap=0.0),
        replace(certificate, check=replace(proof, cases=proof.cases[1:])),
        replace(certificate, check=replace(proof, prices=-1 - proof.prices)),
        replace(
            certificate,
            check=replace(
                proof,
                cases=tuple(
                    replace(case, certificate=None, infeasible=True) if i == settled else case
                    for i, case in enumerate(proof.cases)
                ),
            ),
        ),
    ]
    for one in false:
        with pytest.raises(ValueError, match="Expected"):
            one.verify(problem)


def test_fixed_levels_leave_the_same_values_and_costs() -> None:
    """The rest's amounts and values are the whole's, for every choice of the rest."""
    problem = star(3, hubs=2)
    groups = cutset(problem)
    assert groups is not None
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = np.array([rng.integers(len(group)) for group in problem.groups])
        fixed = {g: int(choice[g]) for g in groups}
        rest = conditioned(problem, fixed)
        others = [g for g in range(len(choice)) if g not in fixed]
        assert rest.used(choice[others]) == problem.used(choice)
        offset = sum(float(problem.groups[g].values[choice[g]]) for g in groups)
        assert rest.value(choice[others]) + offset == pytest.approx(problem.value(choice))
        assert cutset(rest) is None


def one_or_two(name: str, place: int) -> Group:
    """A group that keeps one or two of two structures."""
    return Group(name, np.array([1, 2]), np.array([0.0, 1.0]), 2 * place + np.arange(2))


def test_problems_without_few_hubs_are_refused() -> None:
    """Many hubs, nothing coupled, and links: there is no cutset, and the solver says what to use."""
    free = SelectionProblem((one_or_two("a", 0),), (Capacity("macs", 1, (Product((0,), 1),)),), 2)
    groups = tuple(one_or_two(name, i) for i, name in enumerate("abc"))
    linked = SelectionProblem(groups, (Capacity("macs", 9, (Product((0, 1), 1),)),), 6, links=(Link((1, 2)),))
    for problem in (resnet50(), free, linked):
        assert cutset(problem) is None
        with pytest.raises(ValueError, match="Use solvers.allocation.Allocation"):
            Conditioning().solve(problem)


def test_infeasible_and_stopped_problems_are_outcomes() -> None:
    """Without a choice there is none; without time allocation's answer comes back, with its certificate."""
    problem = star(1)
    none = problem.with_limits({capacity.resource: 1 for capacity in problem.capacities})
    assert Conditioning().solve(none).termination.reason is TerminationReason.INFEASIBLE
    result = Conditioning(gap_tolerance=0, time_limit=0).solve(problem)
    assert result.certificate is not None
    result.certificate.verify(problem)


def test_it_is_chosen_where_one_group_couples_all() -> None:
    """`choose` takes it for stars, and says so."""
    choice = choose(star(2, leaves=6, fraction=0.3))
    assert isinstance(choice.solver, Conditioning)
    assert "group0" in choice.reason
