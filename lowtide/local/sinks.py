"""Which workloads publish events: what the SinkBindings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.local.manifests import SinkBinding

if TYPE_CHECKING:
    from lowtide.local.kustomize import Manifests
    from lowtide.local.workloads import Workload


def sink_of(workload: Workload, manifests: Manifests) -> str | None:
    """Return the Broker whose address this workload gets as `K_SINK`, if any."""
    for binding in manifests.all(SinkBinding):
        subject, reference = binding.spec.subject, binding.spec.sink.ref
        if reference is None or reference.kind != "Broker" or subject.kind != workload.kind:
            continue
        if subject.name is not None and subject.name != workload.name:
            continue
        if (
            subject.selector is not None
            and not subject.selector.match_labels.items() <= workload.labels.items()
        ):
            continue
        return reference.name
    return None
