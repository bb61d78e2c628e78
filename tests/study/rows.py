"""Literal rows of a leaderboard."""

import json

from study.evaluation.leaderboard import Row


def row(method: str, config_id: str, *, val: float | None, h: float | None, select: str = "pseudo-unseen") -> Row:
    return Row(
        method=method,
        config_id=config_id,
        select=select,
        benchmark="icons2emoji",
        clip="embedded",
        val_h_mean=val,
        val_criterion="" if val is None else "h",
        val_h_std=None if val is None else 0.01,
        test_h_mean=h,
        test_h_std=0.005,
        h_gain=None if val is None else 0.0123,
        h_gain_lo=None if val is None else 0.001,
        h_gain_hi=None if val is None else 0.02,
        n_seeds=3,
        feature_fingerprint="abc",
        params=json.dumps({"lr": 0.1, "text": 'a "quoted", | value'}),
    )


ROWS = [
    row("CLIP zero-shot", "zero-shot", val=None, h=0.30),
    row("SRE-CLIP", "sre-0001", val=0.40, h=0.33),
    row("SRE-CLIP", "sre-0002", val=0.42, h=0.32),
    row("Published", "paper", val=None, h=None),
]
