"""``/metrics``: what Prometheus reads, worked out when it asks."""

from collections import defaultdict
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from optimizer.service.fronts import Fronts
from optimizer.states import STATES, Status, statuses
from storage.store import Store


class StudyMetrics(Collector):
    """Trials, failures, seconds by stage, workers busy and hypervolume of every study.

    The hypervolume is the last one that was worked out: reading metrics costs no work.
    """

    def __init__(self, store: Store, fronts: Fronts) -> None:
        self._store = store
        self._fronts = fronts

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        found = statuses(self._store)
        begun = [s for s in found if s.begun]
        yield self._counts(begun)
        yield self._failures(begun)
        yield self._seconds(begun)
        yield from self._gauges(found)

    def _counts(self, begun: list[Status]) -> Metric:
        trials = GaugeMetricFamily("mergefront_trials", "Trials of a study by state.", labels=["study", "state"])
        for s in begun:
            counts = {"measured": s.measured, "failed": s.failed, "running": s.running, "planned": s.planned}
            for state, count in counts.items():
                trials.add_metric([s.name, state], count)
        return trials

    def _failures(self, begun: list[Status]) -> Metric:
        failures = CounterMetricFamily("mergefront_failures", "Attempts that failed, on any split.", labels=["study"])
        for s in begun:
            failures.add_metric([s.name], sum(len(r) for r in self._store.failures(s.name).values()))
        return failures

    def _seconds(self, begun: list[Status]) -> Metric:
        help_text = "Seconds that workers spent, by stage."
        family = CounterMetricFamily("mergefront_stage_seconds", help_text, labels=["study", "stage"])
        for s in begun:
            for stage, seconds in sorted(self._store.seconds(s.name).items()):
                family.add_metric([s.name, stage], seconds)
        return family

    def _gauges(self, found: list[Status]) -> Iterator[Metric]:
        busy = GaugeMetricFamily("mergefront_workers_busy", "Trials that are out at a worker.", labels=["study"])
        volume = GaugeMetricFamily("mergefront_hypervolume", "Of the front, as last worked out.", labels=["study"])
        studies = GaugeMetricFamily("mergefront_studies", "Studies by state.", labels=["state"])
        by_state: dict[str, int] = defaultdict(int)
        for s in found:
            by_state[s.state] += 1
            busy.add_metric([s.name], s.running)
            hypervolume = self._fronts.hypervolume(s.name)
            if hypervolume is not None:
                volume.add_metric([s.name], hypervolume)
        for state in STATES:
            studies.add_metric([state], by_state[state])
        yield from (busy, volume, studies)
