"""What others may give us: addresses with credentials, folders that anybody may write to, prompts, cells of tables."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.feature_store import mapped
from data_prep.storage import has_credentials, locate


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:s3cret@bucket/folder",
        "s3://AKIA:s3/cret@bucket",  # a slash in it
        "s3://bucket/folder?access_key=AKIA&secret_key=s3cret",
        "s3://bucket?session_token=s3cret",
        "s3://bucket?endpoint_override=http://me:s3cret@host:9000",
        "abfs://container:s3cret@account/folder",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UserError, match="^storage must be a URI without credentials") as error:
        locate(uri)
    assert "cret" not in str(error.value) and "AKIA" not in str(error.value)


@pytest.mark.parametrize(
    "where",
    [
        "s3://bucket/a:b@c?endpoint_override=host:9000&scheme=http&region=eu-west-1",
        "hdfs://me@host:8020/folder@noon",
        "hdfs://host:8020/folder@noon",
        "/home/me/key:1@2",
        "postgresql://me@host:5432/db?host=/tmp/sockets&sslkey=/etc/key.pem",
    ],
)
def test_addresses_without_credentials_pass(where: str) -> None:
    assert not has_credentials(where)


def test_zeros_in_the_place_of_features_are_not_believed(small_cache: Path, tmp_path: Path) -> None:
    features_ID = np.array(mapped(small_cache, "source", tmp_path))
    (file,) = tmp_path.glob("*/*.npy")
    np.save(file, np.zeros_like(features_ID))
    assert np.array_equal(mapped(small_cache, "source", tmp_path), features_ID)  # written again
    content = file.read_bytes()
    for cut in (3, len(content) // 2):
        file.write_bytes(content[:cut])
        assert np.array_equal(mapped(small_cache, "source", tmp_path), features_ID)


def test_a_scratch_folder_of_others_is_refused(small_cache: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / f"zerosweep-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{folder} must be a folder, not a link.*ZEROSWEEP_SCRATCH"):
        mapped(small_cache, "source", tmp_path)
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UserError, match=f"{folder} must belong to this user alone"):
        mapped(small_cache, "source", tmp_path)
    folder.chmod(0o700)
    mapped(small_cache, "source", tmp_path)
    (file,) = folder.glob("*.npy")
    file.rename(elsewhere / "features.npy")
    file.symlink_to(elsewhere / "features.npy")
    with pytest.raises(UserError, match="cannot be used"):
        mapped(small_cache, "source", tmp_path)
    assert not list(elsewhere.glob("*.lock"))
