"""Which features of a window differ from the reference: how sure that is, and how much it matters.

A feature has drifted when its difference is certain (Holm's adjusted p-value below the stated false-alarm rate of the
whole window) and large (an effect of at least the policy's). Either alone misleads: with a million rows every
difference is certain, with a hundred every one is large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from cloudai.display import Card, Shown, Table
from cloudai.errors import IntegrityError
from cloudai.specs.monitoring import DriftPolicy
from cloudai.statistics import effects, tests
from cloudai.statistics.columns import Column, paired, positions
from cloudai.statistics.profiles import Profile

__all__ = ["Finding", "Report", "detect", "evidence_table", "named"]

Kind = Literal["drift", "missingness", "new_categories", "schema", "rows"]
_MOST_SHOWN = 10


@dataclass(frozen=True)
class Finding:
    """What one comparison of one feature showed.

    Attributes
    ----------
    feature : str
        Its name; empty where the finding is about the whole window.
    kind : {"drift", "missingness", "new_categories", "schema", "rows"}
        What was compared. ``"rows"``: nothing, for there were too few.
    statistic : str
        The name of what `value` is.
    value : float
        The share of rows that differ: Kolmogorov and Smirnov's D of numbers, the total variation of categories, the
        difference of the missing shares, the share of rows in new categories or with unexpected values.
    p_value, p_adjusted : float or None
        Of this comparison alone, and adjusted for all of the window's (Holm). None where nothing was tested.
    effect : float
        How large the difference is, in standard deviations of the reference.
    drifted : bool
        The verdict.
    change : str
        What changed, in a few words and in the feature's own units.
    """

    feature: str
    kind: Kind
    statistic: str
    value: float
    p_value: float | None
    p_adjusted: float | None
    effect: float
    drifted: bool
    change: str

    @property
    def summary(self) -> str:
        """All of it in one sentence."""
        if self.p_adjusted is None:
            return f"{self.feature} {self.change}.".lstrip()
        verdict = f"drifted by {self.effect:.2g} σ: {self.change}" if self.drifted else f"has not drifted: {self.change}"
        return f"{self.feature} {verdict} (adjusted p = {_p(self.p_adjusted)})."

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """Read what `to_json` returned.

        Raises
        ------
        IntegrityError
            If it is not that.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise IntegrityError(f"the stored finding cannot be read: {error}", fix="check the window again") from None


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """What a window looked like beside the reference.

    Attributes
    ----------
    findings : tuple of Finding
        Of every feature, the most drifted first.
    rows, reference_rows : int
        How many rows were compared.
    policy : DriftPolicy
        What counts as drift.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> reference = Profile.of({"age": rng.normal(40, 10, 2000), "pay": rng.lognormal(0, 1, 2000)})
    >>> window = reference.empty().updated({"age": rng.normal(50, 10, 500), "pay": rng.lognormal(0, 1, 500)})
    >>> Report.of(reference, window, DriftPolicy())
    Report(drift in 1 of 2 features: age; 500 rows)
    """

    findings: tuple[Finding, ...]
    rows: int
    reference_rows: int
    policy: DriftPolicy

    @classmethod
    def of(cls, reference: Profile, current: Profile, policy: DriftPolicy) -> Report:
        """Compare a window with the reference, as `detect` does."""
        return cls(detect(reference, current, policy), current.rows, reference.rows, policy)

    @property
    def state(self) -> Literal["drift", "no drift", "not enough rows"]:
        """The verdict on the window."""
        if any(finding.kind == "rows" for finding in self.findings):
            return "not enough rows"
        return "drift" if self.drifted else "no drift"

    @property
    def features(self) -> tuple[str, ...]:
        """The names of all features that were looked at."""
        return tuple(dict.fromkeys(finding.feature for finding in self.findings if finding.feature))

    @property
    def drifted(self) -> tuple[str, ...]:
        """The names of the features that have drifted, the most drifted first."""
        return tuple(dict.fromkeys(finding.feature for finding in self.findings if finding.drifted))

    def __repr__(self) -> str:
        names = f" in {len(self.drifted)} of {len(self.features)} features: {named(self.drifted)}" if self.drifted else ""
        return f"Report({self.state}{names}; {self.rows} rows)"

    def card(self) -> Card:
        """Show the verdict, what it stands on and the most drifted features."""
        facts = [
            ("state", self.state),
            ("rows", f"{self.rows:,} in the window, {self.reference_rows:,} in the reference"),
            ("counts as drift", f"at least {self.policy.min_effect:g} σ of the reference"),
            ("false alarms", f"in at most {_percent(self.policy.alarm_rate)} of windows without drift"),
        ]
        found = [finding for finding in self.findings if finding.drifted]
        if self.state == "not enough rows":
            return Card("Report", facts, notes=[finding.summary for finding in self.findings])
        if not found:
            return Card("Report", facts, notes=[f"Features compared: {len(self.features)}, none has drifted."])
        hidden = len(found) - _MOST_SHOWN
        notes = [f"… and {hidden} more in .findings"] if hidden > 0 else []
        return Card("Report", facts, tables=[evidence_table(found)], notes=notes)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        findings = [finding.to_json() for finding in self.findings]
        counts = {"rows": self.rows, "reference_rows": self.reference_rows}
        return {"findings": findings, **counts, "policy": self.policy.model_dump(mode="json")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Read what `to_json` returned.

        Raises
        ------
        IntegrityError
            If it is not that.
        """
        try:
            findings = tuple(Finding.from_json(item) for item in data["findings"])
            return cls(findings, int(data["rows"]), int(data["reference_rows"]), DriftPolicy.of(**data["policy"]))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the stored report cannot be read: {error!r}", fix="check the window again") from None


def detect(reference: Profile, current: Profile, policy: DriftPolicy) -> tuple[Finding, ...]:
    """Compare each feature of a window with the reference.

    Numbers are compared by Kolmogorov and Smirnov's test, which sees any change, and by rank sums, which see a shift
    in fewer rows; categories by Pearson's 2 × K test; missing values by Fisher's exact test. The effect of numbers is
    Wasserstein's distance in deviations of the reference, both taken without wild rows; a share of rows counts as
    the shift of a normal distribution that moves as many.

    Parameters
    ----------
    reference : Profile
        What the model was trained on.
    current : Profile
        The window, counted on the reference's grid: ``reference.empty().updated(columns)``.
    policy : DriftPolicy
        What counts as drift.

    Returns
    -------
    tuple of Finding
        At least one for every feature, the most drifted first; a single one if there are too few rows.

    Raises
    ------
    SpecError
        If the profiles are on different grids.
    """
    reference.require_same_grid(current)
    for rows, where in ((current.rows, "window"), (reference.rows, "reference")):
        if rows < policy.min_rows:
            what = f"not enough rows in the {where}: {rows} < {policy.min_rows}"
            return (Finding("", "rows", "rows", float(rows), None, None, 0.0, drifted=False, change=what),)
    compared = [finding for name in reference.columns for finding in _compared(name, reference, current)]
    judged = _judged(compared, policy)
    faults = [*_absent(reference, current), *_strangers(reference, current)]
    return tuple(sorted([*judged, *faults], key=lambda finding: (not finding.drifted, -finding.effect)))


def named(features: Sequence[str], most: int = 5) -> str:
    """List the first names, and say how many more there are.

    Examples
    --------
    >>> named(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(features[:most]) + (f" and {len(features) - most} more" if len(features) > most else "")


def evidence_table(findings: Sequence[Finding]) -> Table:
    """Return the first ten findings as rows: feature, effect, certainty and what changed."""
    rows = [(item.feature, f"{item.effect:.2g} σ", _p(item.p_adjusted), item.change) for item in findings[:_MOST_SHOWN]]
    return Table(("feature", "effect", "adjusted p", "change"), rows)


def _compared(name: str, reference: Profile, current: Profile) -> Iterator[Finding]:
    """Make the findings of one column, still without a verdict."""
    before, now = reference.columns[name], current.columns[name]
    if not now.rows:
        return
    yield from _missing(name, reference, current)
    if not before.present or not now.present:
        yield _untested(name, f"has no values in the {'window' if before.present else 'reference'} to compare")
        return
    cells, one, other = paired(before, now)
    if before.kind == "numeric":
        yield _numbers(name, before, cells, one, other)
    else:
        labels = [before.labels.get(cell, now.labels.get(cell, "…")) for cell in cells.tolist()]
        yield _categories(name, labels, one, other)
        yield _new_categories(name, labels, one, other)


def _numbers(name: str, grid: Column, cells: np.ndarray, one: np.ndarray, other: np.ndarray) -> Finding:
    where = positions(cells)
    if len(cells) == 1:
        return _untested(name, f"has the one value {grid.center + grid.scale * float(where[0]):.6g} in both")
    smirnov, ranks = tests.kolmogorov_smirnov(one, other), tests.rank_sum(one, other)
    p_values = [test.p_value for test in (smirnov, ranks) if test is not None]
    low, high, deviation = effects.inner_range(where, one)
    inner = np.clip(where, low - deviation, high + deviation)
    moved = effects.wasserstein(inner, one, other)
    effect = moved / deviation if deviation else effects.shift_of_share(smirnov.statistic)
    means = [grid.center + grid.scale * float(np.average(inner, weights=counts)) for counts in (one, other)]
    p_value = min(1.0, len(p_values) * min(p_values))
    change = f"mean {means[0]:.4g} → {means[1]:.4g}"
    return Finding(name, "drift", "ks", smirnov.statistic, p_value, None, effect, drifted=False, change=change)


def _categories(name: str, labels: Sequence[str], one: np.ndarray, other: np.ndarray) -> Finding:
    test = tests.chi_squared(one, other)
    if test is None:
        return _untested(name, f"has {labels[int(np.argmax(one + other))]!r} and nothing else that is frequent, in both")
    value = effects.total_variation(one, other)
    before, now = one / one.sum(), other / other.sum()
    most = int(np.argmax(np.abs(now - before)))
    change = f"{labels[most]!r} in {_percent(before[most])} → {_percent(now[most])} of rows"
    return _of_share(name, "drift", "total_variation", value, test.p_value, change)


def _new_categories(name: str, labels: Sequence[str], one: np.ndarray, other: np.ndarray) -> Finding:
    test = tests.only_in_second(one, other)
    most = labels[int(np.argmax(np.where(one == 0, other, 0)))]
    change = f"new categories such as {most!r} in {_percent(test.statistic)} of rows"
    return _of_share(name, "new_categories", "new_share", test.statistic, test.p_value, change)


def _missing(name: str, reference: Profile, current: Profile) -> Iterator[Finding]:
    rows = (reference.rows, current.rows)
    missing = (rows[0] - reference.columns[name].present, rows[1] - current.columns[name].present)
    if any(missing):
        test = tests.two_proportions(missing, rows)
        change = f"missing in {_percent(missing[0] / rows[0])} → {_percent(missing[1] / rows[1])} of rows"
        yield _of_share(name, "missingness", "missing_difference", abs(test.statistic), test.p_value, change)


def _absent(reference: Profile, current: Profile) -> Iterator[Finding]:
    for name, column in current.columns.items():
        if not column.rows and name not in current.strangers:
            yield _fault(name, "absent_share", 1.0, f"is absent: {_kind(reference.columns[name])} in the reference")


def _strangers(reference: Profile, current: Profile) -> Iterator[Finding]:
    for name, rows in current.strangers.items():
        share = rows / current.rows
        if name in reference.columns:
            change = f"holds other values than {_kind(reference.columns[name])}, in {_percent(share)} of rows"
        else:
            change = "is new: the reference has no such column"
        yield _fault(name, "unexpected_share", share, change)


def _of_share(name: str, kind: Kind, statistic: str, share: float, p_value: float, change: str) -> Finding:
    effect = effects.shift_of_share(share)
    return Finding(name, kind, statistic, share, p_value, None, effect, drifted=False, change=change)


def _untested(name: str, change: str) -> Finding:
    return Finding(name, "drift", "none", 0.0, None, None, 0.0, drifted=False, change=change)


def _fault(name: str, statistic: str, share: float, change: str) -> Finding:
    return Finding(name, "schema", statistic, share, None, None, effects.shift_of_share(share), drifted=True, change=change)


def _judged(findings: Sequence[Finding], policy: DriftPolicy) -> list[Finding]:
    """Adjust for the number of tests and decide each finding.

    A test for new categories is counted in even where there are none: leaving it out for that would bend the rate.
    """
    adjusted = iter(tests.holm([finding.p_value for finding in findings if finding.p_value is not None]))
    judged = [item if item.p_value is None else _verdict(item, next(adjusted), policy) for item in findings]
    return [item for item in judged if item.kind != "new_categories" or item.value > 0]


def _verdict(finding: Finding, p_adjusted: float, policy: DriftPolicy) -> Finding:
    # D counts beside the distance, which the large deviation of a heavy tail would hide.
    large = max(finding.effect, effects.shift_of_share(finding.value)) >= policy.min_effect
    return replace(finding, p_adjusted=p_adjusted, drifted=p_adjusted < policy.alarm_rate and large)


def _kind(column: Column) -> str:
    return "numbers" if column.kind == "numeric" else "categories"


def _p(p_value: float | None) -> str:
    if p_value is None:
        return "certain"
    return f"{p_value:.2g}" if p_value >= 1e-99 else "< 1e-99"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
