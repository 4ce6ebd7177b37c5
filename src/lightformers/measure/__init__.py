"""Measuring: time, memory, size, work, and what this machine offers. The only clock in the house."""

from __future__ import annotations

from lightformers.measure.explain import why_not_faster
from lightformers.measure.machine import machine, machine_fingerprint, model_fingerprint
from lightformers.measure.peaks import Peaks, peaks
from lightformers.measure.profile import profile, profile_openvino
from lightformers.measure.resources import flops, peak_memory, size_on_disk
from lightformers.measure.timing import Timing, compare, paired
from lightformers.measure.workload import Workload, latencies, latency, throughput, time_runners

__all__ = [
    "Peaks",
    "Timing",
    "Workload",
    "compare",
    "flops",
    "latencies",
    "latency",
    "machine",
    "machine_fingerprint",
    "model_fingerprint",
    "paired",
    "peak_memory",
    "peaks",
    "profile",
    "profile_openvino",
    "size_on_disk",
    "throughput",
    "time_runners",
    "why_not_faster",
]
