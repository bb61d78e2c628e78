"""What others may give us: addresses with credentials, folders that anybody may write to, prompts, cells of tables."""

import pytest

from data_prep.errors import UserError
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
