"""Checks readiness, memory, logs, and how fast the service recovers from each fault."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from findings import Findings
from model import SECOND, Fault, Run, Sample
from numbering import frames

# The status of a sample without an answer, and of one that is ready.
NO_ANSWER = 0
READY = 200
# A replica is ready only if it has these.
NEEDED = frozenset(("postgres", "machine"))


@dataclass(slots=True)
class Recovery:
    fault: Fault
    seconds: float | None  # none if the next fault began before


def check(run: Run, counts: Counter[str], findings: Findings) -> list[Recovery]:
    """Adds the samples of readiness that could contradict the true state to the counts."""
    # Every log is searched before `drained` is trusted, see `campaign/ending.rs`.
    findings.judged("log_leaks", run.log_lines)
    for at, replica in run.log_leaks:
        findings.add("log_leaks", f"a log of {replica} has a secret", at)
    _memory(run, findings)
    _ready_without_postgres(run, counts, findings)
    _unready_without_cause(run, counts, findings)
    return list(_recoveries(run, findings))


def _memory(run: Run, findings: Findings) -> None:
    bound = run.settings["bounds"]["rss_bytes"]
    for replica, samples in run.memory.items():
        findings.judged("memory_above_bound", len(samples))
        highest = max(samples, key=lambda sample: sample.value)
        if highest.value > bound:
            findings.add("memory_above_bound", f"{replica} used {highest.value} bytes, the bound is {bound}", highest.at)


def _ready_without_postgres(run: Run, counts: Counter[str], findings: Findings) -> None:
    """Finds samples of 200 that were asked for while Postgres was wholly away for longer than the bound."""
    bound = int(run.settings["bounds"]["unready_seconds"] * SECOND)
    for fault in run.faults.values():
        if not fault.is_outage():
            continue
        ended = run.last if fault.ends_from is None else fault.ends_from
        for replica, samples in run.readiness.items():
            away = [sample for sample in samples
                    if fault.effective_from + bound < sample.asked and sample.t < ended and sample.value != NO_ANSWER]
            findings.judged("readiness_untrue", len(away))
            counts["unreadiness_judged"] += len(away)
            wrong = next((sample for sample in away if sample.value == READY), None)
            if wrong is not None:
                seconds = (wrong.asked - fault.effective_from) / SECOND
                findings.add("readiness_untrue", f"{replica} was ready {seconds:.1f} s after Postgres went away", wrong.at)


def _unready_without_cause(run: Run, counts: Counter[str], findings: Findings) -> None:
    """Finds samples that are not 200 although nothing that the replica needs has been hit for longer than the bound.

    A fault elsewhere keeps the machine busy, so two samples must agree while one is active. A slow time excuses every
    replica, most of all after the faults, when all devices catch up. A sample without an answer claims nothing. Only a silence that is longer than the bound counts."""
    bound = int(run.settings["bounds"]["readiness_seconds"] * SECOND)
    excuses = [*run.faults.values(), *run.slow_times()]
    all_faults = _merged([(fault.begun, run.end_of(fault)) for fault in excuses])
    total = 0
    for replica in run.settings["replicas"]:
        samples = _since_first_ready(run.readiness.get(replica, []))
        if not samples:
            findings.add("readiness_untrue", f"{replica} was never ready")
        own = _merged([(fault.begun, run.end_of(fault)) for fault in excuses if fault.hits & NEEDED or replica in fault.hits])
        total += sum(sample.t < (run.drained or run.last) for sample in samples)
        for faults, agreeing in ((all_faults, 1), (own, 2)):
            ends = [0, *(ended for _, ended in faults)]
            begins = [*(begun for begun, _ in faults), run.drained or run.last]
            for ended, begun in zip(ends, begins):
                calm = [sample for sample in samples if ended + bound < sample.asked and sample.t < begun]
                if faults is own:
                    findings.judged("readiness_untrue", len(calm))
                    counts["readiness_judged"] += len(calm)
                wrong = next(_untrue(calm, bound, agreeing), None)
                if wrong is not None:
                    seconds = (wrong.t - ended) / SECOND
                    findings.add("readiness_untrue", f"{replica} was not ready after {seconds:.1f} s without a cause", wrong.at)
    counts["readiness_judged_percent"] = 100 * counts["readiness_judged"] // max(1, total)


def _untrue(samples: list[Sample], bound: int, agreeing: int) -> Iterator[Sample]:
    silent_since: int | None = None
    unready = 0
    for sample in samples:
        if sample.value == NO_ANSWER:
            silent_since = sample.t if silent_since is None else silent_since
            if sample.t - silent_since > bound:
                yield sample
            continue
        silent_since = None
        unready = 0 if sample.value == READY else unready + 1
        if unready >= agreeing:
            yield sample


def _since_first_ready(samples: list[Sample]) -> list[Sample]:
    first = next((place for place, sample in enumerate(samples) if sample.value == 200), len(samples))
    return samples[first:]


def _merged(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begun, ended in sorted(intervals):
        if merged and begun <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(ended, merged[-1][1]))
        else:
            merged.append((begun, ended))
    return merged


def _recoveries(run: Run, findings: Findings) -> Iterator[Recovery]:
    """Measures from the end of each fault. Faults that overlap recover together, from the end of the last of them."""
    bound = run.settings["bounds"]["recovery_seconds"]
    intervals = _merged([(fault.begun, fault.ended or run.last) for fault in run.faults.values()])
    confirmed, best = _deliveries(run)
    for place, (_, ended) in enumerate(intervals):
        fault = next(fault for fault in run.faults.values() if fault.ended == ended or fault.ended is None)
        until = intervals[place + 1][0] if place + 1 < len(intervals) else run.last
        findings.judged("recovery_above_bound", 1)
        recovered = _recovered(run, ended, confirmed, best)
        if recovered is not None and (recovered <= until or recovered - ended > bound * SECOND):
            seconds: float | None = (recovered - ended) / SECOND
        else:
            seconds = None
        yield Recovery(fault, seconds)
        is_last = place + 1 == len(intervals)
        never = seconds is None and (is_last or until - ended > bound * SECOND)
        if never or (seconds is not None and seconds > bound):
            after = "never" if seconds is None else f"{seconds:.1f} s"
            findings.add("recovery_above_bound", f"recovery from {fault.name} {fault.number} ({fault.target}): {after}", fault.at)


def _deliveries(run: Run) -> tuple[list[int], list[int]]:
    """The moments of all confirms, ascending, and for each the first delivery of an event confirmed then or later."""
    first: dict[int, int] = {}
    for frame in frames(run):
        if frame.t < first.get(frame.event, run.last + 1):
            first[frame.event] = frame.t
    pairs = sorted((event.confirmed, max(event.confirmed, first[number]))
                   for number, event in run.events.items() if event.confirmed is not None and number in first)
    best = [delivered for _, delivered in pairs]
    for place in range(len(best) - 2, -1, -1):
        best[place] = min(best[place], best[place + 1])
    return [confirmed for confirmed, _ in pairs], best


def _recovered(run: Run, ended: int, confirmed: list[int], best: list[int]) -> int | None:
    """The first moment at which every replica was ready and an event confirmed after the fault was delivered."""
    place = bisect_left(confirmed, ended)
    if place == len(confirmed):
        return None
    moments = [best[place]]
    for replica in run.settings["replicas"]:
        ready = next((sample.t for sample in run.readiness.get(replica, ()) if sample.t >= ended and sample.value == 200), None)
        if ready is None:
            return None
        moments.append(ready)
    return max(moments)
