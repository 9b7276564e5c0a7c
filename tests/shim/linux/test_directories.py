import os
from pathlib import Path

import pytest

from shim.linux.directories import private_directory


def test_is_made_with_its_parents_for_the_owner_alone(tmp_path: Path) -> None:
    private_directory(str(tmp_path / "a" / "b"))
    for made in ("a", "a/b"):
        assert (tmp_path / made).stat().st_mode & 0o777 == 0o700
    private_directory(str(tmp_path / "a" / "b"))


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_one_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(mode)
    with pytest.raises(PermissionError, match=str(tmp_path / "d")):
        private_directory(str(tmp_path / "d"))


def test_another_owners_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    os.chown(tmp_path / "d", 65534, 65534)
    with pytest.raises(PermissionError):
        private_directory(str(tmp_path / "d"))


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "d").symlink_to("target")
    with pytest.raises(PermissionError):
        private_directory(str(tmp_path / "d"))
