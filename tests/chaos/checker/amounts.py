"""Counts everything that must have happened, so that a run in which little happened proves nothing."""

from collections import Counter

from model import SECOND, Frame, Run, Skip

# Each must reach its floor in `run.json`. The last one counts the faults that had an effect.
FLOORS = (
    "attempted", "confirmed", "stored", "delivered", "acknowledged", "dead_lettered", "marked", "skipped", "sessions", "reopened",
    "replayed", "acks", "acks_judged_percent", "readiness_judged", "faults",
)

# These need time, so a shorter run may have none: three of 1,000 events become dead letters, for example.
RARE = ("dead_lettered", "skipped", "readiness_judged")
SHORT_SECONDS = 30

# An outage of Postgres that is longer than the bound of readiness by this has samples of readiness in it.
SAMPLED_SECONDS = 2

# A kind of fault may meet an idle moment twice, and the verdict lists it. It never does so three times.
TRIES = 3


def is_short(run: Run) -> bool:
    return bool(run.settings.get("seconds", SHORT_SECONDS) < SHORT_SECONDS)


def count(run: Run, counts: Counter[str]) -> None:
    """Adds the amounts to the counts of the other checks."""
    counts["sessions"] = len(run.sessions)
    seen: set[tuple[str, str]] = set()
    for session in run.sessions.values():
        if session.device in seen:
            counts["reopened"] += 1
            is_behind = any(start.cursor < start.last_seq for start in session.starts.values())
            counts["replayed"] += is_behind and any(isinstance(item, Frame) for item in session.items)
        seen.add(session.device)
        counts["skipped"] += sum(isinstance(item, Skip) for item in session.items)
    counts["marked"] = len(run.marks["confirmed"])
    counts["acks_judged_percent"] = 100 * counts["acks_judged"] // max(1, counts["acks"])
    counts["faults"] = sum(fault.effect > 0 for fault in run.faults.values())
    counts["faults_without_effect"] = len(run.faults) - counts["faults"]


def problems(run: Run, counts: Counter[str]) -> list[str]:
    """The reasons why the run proves nothing."""
    floors = run.settings["floors"]
    found = []
    for name in FLOORS:
        floor = floors.get(name)
        may_be_0 = name == "faults" and not run.settings["scenarios"] or name in RARE and is_short(run)
        if not isinstance(floor, int) or floor < (0 if may_be_0 else 1):
            found.append(f"run.json has no floor for {name}")
        elif counts[name] < floor:
            found.append(f"too little happened: {name} is {counts[name]}, and must be {floor}")
    by_kind: dict[str, list[int]] = {}
    for fault in run.faults.values():
        by_kind.setdefault(fault.name, []).append(fault.effect)
    found += [f"the fault {name} had no effect, {len(effects)} times" for name, effects in by_kind.items()
              if len(effects) >= TRIES and not any(effects)]
    outages = _long_outages(run)
    if outages and not counts["unreadiness_judged"]:
        found.append(f"readiness was never judged while Postgres was away, in {outages} long outages")
    return found


def _long_outages(run: Run) -> int:
    """The outages of Postgres in which every replica must have reported that it is not ready."""
    least = (run.settings["bounds"]["unready_seconds"] + SAMPLED_SECONDS) * SECOND
    ends = ((fault, run.last if fault.ends_from is None else fault.ends_from) for fault in run.faults.values() if fault.is_outage())
    return sum(ended - fault.effective_from > least for fault, ended in ends)
