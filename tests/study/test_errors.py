"""Errors of stores that go away in the middle of a study."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.storage import locate
from study.options import Options, OutputOptions
from study.pipeline.spec import resolve
from study.pipeline.study import errors_say_how_to_go_on


def test_a_store_that_is_gone_says_where_the_ledger_lies_and_how_to_go_on(tmp_path: Path) -> None:
    output = OutputOptions(storage=str(tmp_path / "results"), cache=str(tmp_path / "cache"))
    spec = resolve(Options(output=output))
    again = "python study/run.py --name x --resume"

    with pytest.raises(UserError) as error, errors_say_how_to_go_on(spec, again):
        locate("/proc/no/such").write("x", b"")
    assert str(error.value).startswith("storage must be writable: /proc/no/such/x: ")
    assert str(error.value).endswith(f". The ledger lies in {spec.storage.root}; go on with: {again}")

    away = replace(spec, storage=replace(spec.storage, filesystem=locate("s3://b?region=x").filesystem, root="b/study"))
    with pytest.raises(UserError, match=f"The ledger lies in {tmp_path}/cache/ledgers/b/study; "):
        with errors_say_how_to_go_on(away, again):
            raise UserError("must be writable", option="storage")

    with pytest.raises(UserError, match="^epochs must be 1$"), errors_say_how_to_go_on(spec, again):
        raise UserError("must be 1", option="epochs")
