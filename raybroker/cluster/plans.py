"""Two plans held against each other: what would make other columns than it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Plan = Mapping[str, Any]
MOST_PACKAGES = 12  # named one by one


def upstream(plan: Plan, name: str) -> set[str]:
    """The steps that a step's column was made from: those that it needs, and those that they need."""
    needs = {step["name"]: step["needs"] for step in plan.get("steps", ())}
    found: set[str] = set()
    waiting = list(needs.get(name, ()))
    while waiting:
        need = waiting.pop()
        if need in needs and need not in found:
            found.add(need)
            waiting += needs[need]
    return found


def differences(was: Plan, here: Plan, wanted: set[str]) -> list[str]:
    """A sentence for each difference that may change the columns of these steps; a package that came since does not."""
    before, now = ({step["name"]: step for step in plan["steps"]} for plan in (was, here))
    found = (
        [] if was["survey"] == here["survey"] else [f"the survey is {here['survey']}, was {was['survey']}"]
    )
    for name in sorted(wanted):
        if name not in now:
            found.append(
                f"step '{name}' is not on here; the row was made with its version {before[name]['version']}"
            )
        else:
            found += _of_step(name, before[name], now[name])
    return [*found, *_of_packages(was["packages"], here["packages"])]


def _of_step(name: str, was: Plan, here: Plan) -> Iterator[str]:
    for key in ("version", "kind", "needs", "gives"):
        if was[key] != here[key]:
            yield f"step '{name}': {key} is {here[key]!r} here, was {was[key]!r}"
    for key in sorted({*was["settings"], *here["settings"]}):
        old, new = was["settings"].get(key), here["settings"].get(key)
        if old != new:
            yield f"step '{name}': setting {key} is {new!r} here, was {old!r}"


def _of_packages(was: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    changed = [name for name, version in was.items() if here.get(name) != version]
    for name in changed[:MOST_PACKAGES]:
        installed = f"is {here[name]} here" if name in here else "is not installed here"
        yield f"package {name} {installed}, was {was[name]}"
    if len(changed) > MOST_PACKAGES:
        yield f"{len(changed) - MOST_PACKAGES} more packages have other versions"
