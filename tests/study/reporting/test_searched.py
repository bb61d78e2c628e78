"""What charts compute themselves."""

import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from study.reporting.searched import importances_of


def test_importances_weigh_ranges_as_they_were_searched() -> None:
    """y = [lr < 0.01] + x, lr log-uniform in [1e-4, 1], x uniform in [0, 1]: variances 1/4 and 1/12, so 75 % and 25 %.

    On a linear scale of lr the first would be 0.0099, and its share 11 %.
    """
    rng = np.random.default_rng(0)
    ranges = {"lr": FloatDistribution(1e-4, 1.0, log=True), "x": FloatDistribution(0.0, 1.0)}
    ranges["kind"] = CategoricalDistribution(("a", "b"))
    ranges["b_only"] = FloatDistribution(0.0, 1.0)
    trials = []
    for i in range(120):
        params = {"lr": math.exp(rng.uniform(math.log(1e-4), 0)), "x": rng.random(), "kind": "ab"[i % 2]}
        if i % 2:
            params["b_only"] = rng.random()
        of_trial = {name: ranges[name] for name in params}
        trials.append(create_trial(value=(params["lr"] < 0.01) + params["x"], params=params, distributions=of_trial))
    shares = importances_of(trials)
    assert list(shares) == ["lr", "x", "kind"]  # a knob that only some have is left out
    assert shares == pytest.approx({"lr": 0.75, "x": 0.25, "kind": 0.0}, abs=0.06)
