from pathlib import Path

import numpy as np

from data_prep.storage import locate
from study.protocol.votes import Votes
from study.search.votes import VoteFolder


def test_votes_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = VoteFolder(storage=locate(tmp_path))
    classes = {"none": np.array([[1, 2], [3, 4]], dtype=np.int16), "zlap": np.array([[5, 6]])}
    written = Votes(classes=classes, metrics={"zlap": {"val_h_mean": 0.1 + 0.2}})
    folder.save(7, written)
    assert [path.name for path in (tmp_path / "votes").iterdir()] == ["000007.npz"]
    read = folder.load([6, 7])
    assert list(read) == [7] and list(read[7].classes) == ["none", "zlap"]
    assert read[7].metrics == written.metrics
    for head, rows in written.classes.items():
        assert read[7].classes[head].tolist() == rows.tolist() and read[7].classes[head].dtype == rows.dtype
