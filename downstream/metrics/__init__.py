"""Metrics of sound event detection, exact and vectorised.

Events are `{file: [(onset_s, offset_s, label), ...]}` (further fields of an event are not looked
at), scores `{file: array (frames, classes)}`. A file that only one side has counts as empty on the
other. Every metric returns a `Score`.

`event_f1`, `event_error_rate` and `segment_*` are sed_eval 0.2.1's (heareval's), `intersection_f1`
and `psds_from_events` psds_eval's, `psds` and `segment_auroc` sed_scores_eval's, `frame_map`
scikit-learn's; where one departs, its docstring says so. `StreamedPSDS` and `StreamedSegmentAUROC`
take scores clip by clip, for sets whose scores are more than memory holds.
"""

from downstream.metrics.event_based import event_error_rate, event_f1
from downstream.metrics.event_table import Events
from downstream.metrics.frame_based import frame_map
from downstream.metrics.intersection_based import intersection_f1, psds_from_events
from downstream.metrics.psds import PSDS1, PSDS2, psds
from downstream.metrics.psds_stream import StreamedPSDS
from downstream.metrics.score import Score
from downstream.metrics.segment_based import segment_accuracy, segment_error_rate, segment_f1
from downstream.metrics.segment_roc import StreamedSegmentAUROC, segment_auroc

__all__ = [
    "PSDS1",
    "PSDS2",
    "Events",
    "Score",
    "StreamedPSDS",
    "StreamedSegmentAUROC",
    "event_error_rate",
    "event_f1",
    "frame_map",
    "intersection_f1",
    "psds",
    "psds_from_events",
    "segment_accuracy",
    "segment_auroc",
    "segment_error_rate",
    "segment_f1",
]
