"""A detector: it alarms where more and more completions shout. It reads the metric of metric.py, and is data alone."""

from rlmon.detectors import DetectorSpec

TOO_LOUD = DetectorSpec(
    id="shouting",
    statistics=("shouting/share",),  # what it reads of each block of prompts
    metrics=("shouting/share",),  # how people know it
    unit="share of letters",
    direction="up",
    rule="absolute",  # at this value; "ratio" and "effective" are against the run's own base
    warn=0.2,
    fail=0.5,
    told=("{now} of the letters are capitals",),
    meaning="Completions are written in capitals.",
    advice="Read the completions with the best rewards: what is it in them that pays?",
    question="Do completions keep their voice down?",
)
