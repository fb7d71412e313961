"""The settings of an evaluation."""

import pytest

from pipeline.core.settings import SettingsError, parse
from pipeline.evaluation.settings import STATES, Evaluation
from pipeline.models import states


def test_states_are_those_of_models():
    assert states.STATES[1:] == STATES
    for wrong, message in ((["traind"], "Did you mean 'trained'"), (["trained"] * 2, "twice"), ([], "states")):
        with pytest.raises(SettingsError, match=message):
            parse(Evaluation, {"states": wrong, "precision": "fp32"}, "evaluation")
