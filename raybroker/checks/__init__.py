"""Conformance checks: what every step, survey and learner must keep to, for our tests and for our users'.

>>> from raybroker import checks
>>> checks.check_step(my_step, batch)  # doctest: +SKIP

Each check raises `AssertionError` with one sentence: what was checked, and which rule it breaks.
"""

from raybroker.checks.bits import same_bits
from raybroker.checks.learners import LEARNER_RULES, check_learner, lesson
from raybroker.checks.steps import LARGE, STEP_RULES, check_fresh_process, check_step
from raybroker.checks.surveys import SURVEY_RULES, check_survey

__all__ = [
    "LARGE",
    "LEARNER_RULES",
    "STEP_RULES",
    "SURVEY_RULES",
    "check_fresh_process",
    "check_learner",
    "check_step",
    "check_survey",
    "lesson",
    "same_bits",
]
